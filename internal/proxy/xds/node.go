package xds

import (
	"encoding/json"
	"fmt"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointpb "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	"lateen.dev/lateen/internal/bootstrap"
)

// node makes the xDS node of a bootstrap.
func node(n bootstrap.Node, version string) (*corepb.Node, error) {
	out := &corepb.Node{
		Id: n.ID, Cluster: n.Cluster, UserAgentName: "lateen-proxy",
		UserAgentVersionType: &corepb.Node_UserAgentVersion{UserAgentVersion: version},
	}
	if n.Region != "" || n.Zone != "" {
		out.Locality = &corepb.Locality{Region: n.Region, Zone: n.Zone}
	}
	data, err := json.Marshal(n.Metadata)
	if err == nil && len(n.Metadata) > 0 {
		out.Metadata = &structpb.Struct{}
		err = out.Metadata.UnmarshalJSON(data)
	}
	if err != nil {
		return nil, fmt.Errorf("make node %q: metadata: %w", n.ID, err)
	}
	return out, nil
}

func unpack(from, into proto.Message) error {
	a, ok := from.(*anypb.Any)
	if !ok {
		return fmt.Errorf("unexpected message %T", from)
	}
	if want := into.ProtoReflect().Descriptor().FullName(); a.MessageName() != want {
		return fmt.Errorf("type %q, want %q", a.GetTypeUrl(), want)
	}
	return proto.Unmarshal(a.GetValue(), into)
}

// noEndpoints stands for the answer that an endpoint resource does not exist.
func noEndpoints(name string) *anypb.Any {
	a, err := anypb.New(&endpointpb.ClusterLoadAssignment{ClusterName: name})
	if err != nil {
		// A message of ours with a valid name always encodes; an invalid one
		// (not UTF-8) cannot have been subscribed to.
		return &anypb.Any{TypeUrl: "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"}
	}
	return a
}
