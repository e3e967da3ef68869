package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"
)

// Answers is what a run of calls came to.
type Answers struct {
	// ByPod counts the successful answers of each pod.
	ByPod map[string]int `json:"byPod"`
	// ByStatus counts answers by status code.
	ByStatus map[int]int `json:"byStatus"`
	// Errors are the distinct transport errors, with their counts.
	Errors map[string]int `json:"errors"`
	// Body is the last answer that was not of goapp.
	Body string `json:"body"`
}

// call sends -n requests (or as many as fit into -for) over -c connections and
// prints Answers as JSON.
func call(args []string) error {
	flags := flag.NewFlagSet("call", flag.ContinueOnError)
	n := flags.Int("n", 1, "requests")
	connections := flags.Int("c", 1, "connections at a time")
	header := flags.String("H", "", "name=value of one more header")
	duration := flags.Duration("for", 0, "send for this long instead of -n requests")
	pause := flags.Duration("pause", 0, "wait between requests of a connection")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() != 1 || *connections < 1 {
		return errors.New("want: goapp call [flags] URL")
	}
	c := &caller{
		client: &http.Client{Timeout: 15 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: *connections}},
		url:    flags.Arg(0), header: *header, pause: *pause,
		answers: Answers{ByPod: map[string]int{}, ByStatus: map[int]int{}, Errors: map[string]int{}},
	}
	c.left = *n
	if *duration > 0 {
		c.left = 1 << 30
		c.until = time.Now().Add(*duration)
	}
	var wg sync.WaitGroup
	for range *connections {
		wg.Go(c.work)
	}
	wg.Wait()
	return json.NewEncoder(os.Stdout).Encode(c.answers)
}

type caller struct {
	client      *http.Client
	url, header string
	pause       time.Duration
	until       time.Time

	mu      sync.Mutex
	left    int
	answers Answers
}

func (c *caller) next() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.left == 0 || !c.until.IsZero() && time.Now().After(c.until) {
		return false
	}
	c.left--
	return true
}

func (c *caller) work() {
	for c.next() {
		status, body, err := c.send()
		c.note(status, body, err)
		time.Sleep(c.pause)
	}
}

func (c *caller) send() (status int, body []byte, err error) {
	req, err := http.NewRequest(http.MethodGet, c.url, nil)
	if err != nil {
		return 0, nil, fmt.Errorf("make request: %w", err)
	}
	if name, value, ok := strings.Cut(c.header, "="); ok {
		req.Header.Set(name, value)
	}
	resp, err := c.client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	body, err = io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return resp.StatusCode, body, errors.Join(err, resp.Body.Close())
}

func (c *caller) note(status int, body []byte, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		c.answers.Errors[err.Error()]++
		return
	}
	c.answers.ByStatus[status]++
	var answer struct {
		Pod string `json:"pod"`
	}
	if json.Unmarshal(body, &answer) != nil || answer.Pod == "" {
		c.answers.Body = string(body)
		return
	}
	c.answers.ByPod[answer.Pod]++
}
