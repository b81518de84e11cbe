// Command dnsd is the DNS server of demo, sandbox and tests: it answers from one master file
// and reads it again when it changes. Faults are scripted in the file, see mailtest.DNS:
//
//	go run ./scripts/dnsd --listen 127.0.0.1:0 --zone FILE --port-file FILE
//
// When it serves it writes "host:port" and a newline to the port file and to standard output.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"pennypost/internal/mailtest"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintf(os.Stderr, "dnsd: %v\n", err)
		os.Exit(1)
	}
}

func run() error {
	listen := flag.String("listen", "127.0.0.1:0", "address of the server, UDP and TCP")
	zone := flag.String("zone", "", "master file to serve")
	portFile := flag.String("port-file", "", "file that gets host:port once the server answers")
	flag.Parse()
	if *zone == "" || flag.NArg() > 0 {
		return fmt.Errorf("usage: dnsd --zone FILE [--listen HOST:PORT] [--port-file FILE]")
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, os.Interrupt, syscall.SIGTERM)
	d, err := mailtest.NewDNS(*listen, *zone)
	if err != nil {
		return err
	}
	defer d.Close()
	if *portFile != "" {
		// A reader that polls for the file must never see half of it.
		tmp := *portFile + ".new"
		if err := os.WriteFile(tmp, []byte(d.Addr()+"\n"), 0o644); err != nil {
			return err
		}
		if err := os.Rename(tmp, *portFile); err != nil {
			return err
		}
	}
	fmt.Println(d.Addr())
	<-stop
	return nil
}
