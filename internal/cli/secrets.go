package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"lateen.dev/lateen/internal/local"
)

// adminPort is where every proxy serves its admin interface, on its loopback.
const adminPort = 15000

// certificates is what a proxy's /certs says (Envoy's form).
type certificates struct {
	Certificates []struct {
		CA    []certificate `json:"ca_cert"`
		Chain []certificate `json:"cert_chain"`
	} `json:"certificates"`
}

type certificate struct {
	Path   string    `json:"path"`
	Serial string    `json:"serial_number"`
	SANs   []sanName `json:"subject_alt_names,omitempty"`
	From   time.Time `json:"valid_from"`
	Until  time.Time `json:"expiration_time"`
}

type sanName struct {
	URI string `json:"uri,omitempty"`
	DNS string `json:"dns,omitempty"`
}

// proxySecrets prints the certificates a proxy holds. They never pass through
// the control process, so the proxy itself is asked; it does not tell keys.
func (o *options) proxySecrets(ctx context.Context, id string) error {
	var certs certificates
	if err := o.adminGet(ctx, id, "/certs", &certs); err != nil {
		return err
	}
	out := struct {
		APIVersion   string `json:"apiVersion"`
		Proxy        string `json:"proxy"`
		Certificates any    `json:"certificates"`
	}{apiVersion, id, certs.Certificates}
	return o.print(out, func(w io.Writer) {
		var rows [][]string
		add := func(kind string, list []certificate) {
			for _, c := range list {
				who := ""
				for _, san := range c.SANs {
					who += san.URI + san.DNS
				}
				rows = append(rows, []string{c.Path, kind, who, c.From.Format(time.DateTime), c.Until.Format(time.DateTime), c.Serial})
			}
		}
		for _, c := range certs.Certificates {
			add("certificate", c.Chain)
			add("authority", c.CA)
		}
		columns(w, "SECRET KIND IDENTITY FROM UNTIL SERIAL", rows)
	})
}

// adminGet reads a page of a proxy's admin interface through the node.
func (o *options) adminGet(ctx context.Context, id, page string, v any) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	node := local.NewClient(o.dataDir)
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return node.Dial(ctx, id, adminPort) },
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost"+page, nil)
	if err != nil {
		return fmt.Errorf("ask the proxy of %s: %w", id, err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return o.explainNode(fmt.Errorf("ask the proxy of %s: %w", id, err))
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("ask the proxy of %s for %s: status %s", id, page, resp.Status)
	}
	if err := json.NewDecoder(resp.Body).Decode(v); err != nil {
		return fmt.Errorf("read %s of the proxy of %s: %w", page, id, err)
	}
	return nil
}
