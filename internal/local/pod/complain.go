package pod

import (
	"fmt"

	"lateen.dev/lateen/internal/local/logfile"
)

// complain reports why a container ended or could not start, with its last words
// and where the rest of them is. The same complaint is made once, however often
// the container is started again.
func (c *container) complain(reason string, started bool) {
	message := fmt.Sprintf("container %s: %s", c.spec.Name, reason)
	if started {
		if words := logfile.LastWords(c.log.Path()); words != "" {
			message += ": " + words
		}
		message += "; its log is " + c.log.Path()
	}
	// Times and addresses in the last words differ, the failure does not.
	if c.complaint == reason {
		return
	}
	c.complaint = reason
	c.pod.tell(message)
}
