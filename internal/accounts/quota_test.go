package accounts

import "testing"

func TestQuota(t *testing.T) {
	for _, c := range []struct {
		key, value string
		want       [2]int64
		bad        bool
	}{
		{"userdb_quota_rule", "*:storage=1G", [2]int64{1 << 30, 0}, false},
		{"quota_rule", "*:storage=500", [2]int64{500 << 10, 0}, false},
		{"quota_rule", "*:bytes=10M:messages=100", [2]int64{10 << 20, 100}, false},
		{"quota_rule", "?:storage=1T", [2]int64{1 << 40, 0}, false},
		{"quota_rule", "Trash:storage=+10M", [2]int64{}, false},
		{"quota_rule", "*:storage=10%", [2]int64{}, true},
		{"quota_rule", "*:colour=red", [2]int64{}, true},
		{"quota_rule", "*:storage=", [2]int64{}, true},
		{"quota_rule", "*:storage=B", [2]int64{}, true},
		{"quota_rule", "*:storage=-1G", [2]int64{}, true},
		{"quota_rule", "*:storage=9000000000G", [2]int64{1<<63 - 1, 0}, false},
		{"userdb_quota_storage_size", "2 GB", [2]int64{2 << 30, 0}, false},
		{"quota_storage_size", "500B", [2]int64{500, 0}, false},
		{"quota_storage_size", "1GiB", [2]int64{1 << 30, 0}, false},
		{"quota_storage_size", "unlimited", [2]int64{}, false},
		{"quota_message_count", "7", [2]int64{0, 7}, false},
	} {
		octets, messages, err := Quota(map[string]string{c.key: c.value})
		got := [2]int64{octets, messages}
		if got != c.want || (err != nil) != c.bad {
			t.Errorf("%s=%s: %+v %v", c.key, c.value, got, err)
		}
	}
}
