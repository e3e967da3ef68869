package cli

import (
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"lateen": func() { os.Exit(Main(os.Args[1:])) },
	})
}

// TestScripts pins what people and scripts see of each command that needs no
// running mesh: texts, hints, formats and exit codes.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"exits": exits,
		},
		UpdateScripts: os.Getenv("UPDATE") != "",
	})
}

// exits runs a command that must end with the given code: exits CODE COMMAND….
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND…")
	}
	code := "0"
	if err := ts.Exec("sh", append([]string{"-c", `"$@"; c=$?; echo $c > .exit; exit 0`, "sh"}, args[1:]...)...); err != nil {
		ts.Fatalf("%v: %v", args[1:], err)
	}
	code = ts.ReadFile(".exit")
	if code != args[0]+"\n" {
		ts.Fatalf("%v: exit code %s, want %s", args[1:], code, args[0])
	}
}
