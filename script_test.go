package house_test

import (
	"os"
	"testing"

	"pennypost/internal/mailtest"
)

var tools mailtest.Tools

func TestMain(m *testing.M) { os.Exit(tools.Main(m)) }

// TestScripts runs the tools as real processes, alone and as whole mail systems.
func TestScripts(t *testing.T) { tools.RunScripts(t, "testdata/script") }
