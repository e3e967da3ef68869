package scenario

import "encoding/binary"

// GRPC says that the call is one of gRPC.
func (c Call) GRPC() bool { return c.Method == "GRPC" }

// GRPCType is the content type of gRPC.
const GRPCType = "application/grpc"

// GRPCFrame is a message as gRPC puts it on the wire: uncompressed, behind its
// length.
func GRPCFrame(message []byte) []byte {
	b := make([]byte, 5, 5+len(message))
	binary.BigEndian.PutUint32(b[1:], uint32(len(message)))
	return append(b, message...)
}

// GRPCMessage is the first message of a gRPC body, nil if there is none.
func GRPCMessage(body []byte) []byte {
	if len(body) < 5 {
		return nil
	}
	n := binary.BigEndian.Uint32(body[1:])
	if uint32(len(body)-5) < n {
		return nil
	}
	return body[5 : 5+n]
}

// GRPCStatus is the gRPC status of an application that would answer HTTP with a
// status.
func GRPCStatus(status int) int {
	switch status {
	case 200:
		return 0
	case 403:
		return 7
	case 404:
		return 5
	case 429:
		return 8
	case 499:
		return 1
	case 500:
		return 13
	case 503:
		return 14
	case 504:
		return 4
	}
	return 2
}
