// Command echo is the application of live scenarios: it answers with what it
// received, as JSON, and misbehaves as its Deployment's environment asks.
// "echo call JSON" is the client: it sends the requests of one scenario call.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"

	"lateen.dev/lateen/internal/testkit/scenario"
)

type app struct {
	name      string
	behaviour scenario.Behaviour
	mu        sync.Mutex
	attempts  map[string]int
}

func main() {
	if len(os.Args) == 3 && os.Args[1] == "call" {
		if err := call(os.Args[2]); err != nil {
			log.Fatal(err)
		}
		return
	}
	behaviour, err := scenario.ParseBehaviour(os.Getenv("ECHO_BEHAVIOUR"))
	if err != nil {
		log.Fatal(err)
	}
	a := &app{name: os.Getenv("ECHO_NAME"), behaviour: behaviour, attempts: map[string]int{}}
	srv := &http.Server{Addr: ":" + os.Getenv("ECHO_PORT"), Handler: a, ReadHeaderTimeout: 5 * time.Second, Protocols: new(http.Protocols)}
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetUnencryptedHTTP2(true) // what proxies speak to ports declared as gRPC
	log.Fatal(srv.ListenAndServe())
}

func (a *app) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	seen := scenario.Seen{
		Name: a.name, Method: r.Method, Path: r.URL.RequestURI(), Host: r.Host, Header: r.Header,
		Body: string(body), Attempt: a.count(r.Header.Get("X-Request-Id")), Proto: r.Proto,
	}
	fmt.Printf("served %s\n", r.UserAgent()) // the runner counts copies by it
	b := a.behaviour
	if b.First > 0 && seen.Attempt > b.First {
		b = scenario.Behaviour{Status: http.StatusOK}
	}
	time.Sleep(b.Delay)
	if b.Reset {
		panic(http.ErrAbortHandler)
	}
	if r.Header.Get("Content-Type") == scenario.GRPCType {
		answerGRPC(w, b, seen)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Echo-Name", a.name)
	w.WriteHeader(b.Status)
	if err := json.NewEncoder(w).Encode(seen); err != nil {
		log.Print(err)
	}
}

// answerGRPC is a unary response: a message and trailers, or only trailers for a
// failure.
func answerGRPC(w http.ResponseWriter, b scenario.Behaviour, seen scenario.Seen) {
	w.Header().Set("Content-Type", scenario.GRPCType)
	status := strconv.Itoa(scenario.GRPCStatus(b.Status))
	if b.Status != http.StatusOK {
		w.Header().Set("Grpc-Status", status)
		w.WriteHeader(http.StatusOK)
		return
	}
	message, err := json.Marshal(seen)
	if err != nil {
		log.Print(err)
		return
	}
	w.WriteHeader(http.StatusOK)
	if _, err := w.Write(scenario.GRPCFrame(message)); err != nil {
		log.Print(err)
	}
	w.Header().Set(http.TrailerPrefix+"Grpc-Status", status)
}

func (a *app) count(id string) int {
	if id == "" {
		return 1
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.attempts[id]++
	return a.attempts[id]
}
