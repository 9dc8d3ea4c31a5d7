package emulator

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"cloud.google.com/go/bigtable"
	btpb "cloud.google.com/go/bigtable/apiv2/bigtablepb"
	"cloud.google.com/go/bigtable/bttest"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/lag-monitor/lag-monitor/examples/stash-deferred/store"
)

// Faults is what goes wrong. The zero value is a healthy Bigtable.
type Faults struct {
	Down       bool // every call is answered with Unavailable, before anything is done
	ScanHangs  bool // reads of messages are never answered; reads of keys alone are
	NoDeletion bool // nobody may delete a row
}

// Server is a running emulator. Its methods are safe for concurrent use.
type Server struct {
	Config store.Config // how to reach it

	srv *bttest.Server

	mu      sync.Mutex
	faults  Faults
	changed chan struct{} // closed and replaced when faults change
}

// Start starts one that listens on addr (host:port; port 0 for any), with the table in it.
func Start(ctx context.Context, addr string) (*Server, error) {
	s := &Server{changed: make(chan struct{})}
	var err error
	s.srv, err = bttest.NewServer(addr, grpc.ChainUnaryInterceptor(s.unary), grpc.ChainStreamInterceptor(s.stream), grpc.MaxRecvMsgSize(64<<20))
	if err != nil {
		return nil, fmt.Errorf("bigtable emulator: %w", err)
	}
	s.Config = store.Config{Project: "stash", Instance: "emulator", Table: "deferred", Emulator: s.srv.Addr}
	if err := s.createTable(ctx); err != nil {
		s.Close()
		return nil, fmt.Errorf("bigtable emulator: %w", err)
	}
	return s, nil
}

func (s *Server) createTable(ctx context.Context) error {
	conn, err := grpc.NewClient("passthrough:///"+s.srv.Addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	admin, err := bigtable.NewAdminClient(ctx, s.Config.Project, s.Config.Instance, option.WithGRPCConn(conn))
	if err != nil {
		return err
	}
	defer admin.Close()
	if err := admin.CreateTable(ctx, s.Config.Table); err != nil {
		return err
	}
	// The policy is what every instance should have, since a message is one cell; it also starts the emulator's
	// collector of deleted rows, without which they are walked through at each scan for ever.
	return admin.CreateColumnFamilyWithConfig(ctx, s.Config.Table, store.Family, bigtable.Family{GCPolicy: bigtable.MaxVersionsGCPolicy(1)})
}

// Close ends it, and with it what it holds.
func (s *Server) Close() {
	s.Set(Faults{})
	s.srv.Close()
}

// Set replaces all faults. Set(Faults{}) heals.
func (s *Server) Set(f Faults) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = f
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *Server) now() (Faults, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.faults, s.changed
}

var (
	errDown    = status.Error(codes.Unavailable, "the instance is down, by fault injection")
	errDeleted = status.Error(codes.PermissionDenied, "the caller does not have permission bigtable.tables.mutateRows to delete, by fault injection")
)

func (s *Server) unary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	if f, _ := s.now(); f.Down {
		return nil, errDown
	}
	return handler(ctx, req)
}

func (s *Server) stream(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	if f, _ := s.now(); f.Down {
		return errDown
	}
	return handler(srv, &inspected{ServerStream: ss, server: s})
}

// inspected looks at the request of a stream before it is handled.
type inspected struct {
	grpc.ServerStream
	server *Server
}

func (i *inspected) RecvMsg(m any) error {
	if err := i.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	f, changed := i.server.now()
	switch req := m.(type) {
	case *btpb.ReadRowsRequest:
		for f.ScanHangs && !strings.Contains(req.GetFilter().String(), "strip_value_transformer") {
			select {
			case <-changed:
				f, changed = i.server.now()
			case <-i.Context().Done():
				return status.FromContextError(i.Context().Err()).Err()
			}
		}
	case *btpb.MutateRowsRequest:
		for _, e := range req.GetEntries() {
			for _, mut := range e.GetMutations() {
				if f.NoDeletion && mut.GetDeleteFromRow() != nil {
					return errDeleted
				}
			}
		}
	}
	return nil
}
