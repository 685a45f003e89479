package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/streaming/pkg/httpstream"
)

// channels are the names that the versions of the remote command protocol have on the wire.
var channels = map[string]string{
	"v1": "channel.k8s.io",
	"v2": "v2.channel.k8s.io",
	"v3": "v3.channel.k8s.io",
	"v4": "v4.channel.k8s.io",
	"v5": "v5.channel.k8s.io",
}

// target is whom to talk to, and how.
type target struct {
	endpoint  string
	url       string
	transport string
	protocol  string
	timeout   time.Duration
}

func (t *target) flags(set *flag.FlagSet) {
	set.StringVar(&t.endpoint, "endpoint", "", "the CRI endpoint that is asked for a URL, such as unix:///run/cri.sock")
	set.StringVar(&t.url, "url", "", "the URL to stream with, instead of --endpoint and an id")
	set.StringVar(&t.transport, "transport", "spdy", "spdy or websocket")
	set.StringVar(&t.protocol, "protocol", "", "offer nothing but this version of the remote command protocol: v1 to v5")
	set.DurationVar(&t.timeout, "timeout", time.Minute, "leave after this time")
}

func (t *target) check() error {
	if (t.endpoint == "") == (t.url == "") {
		return errors.New("give either --endpoint or --url")
	}
	if t.transport != "spdy" && t.transport != "websocket" {
		return fmt.Errorf("unknown transport %q: spdy or websocket", t.transport)
	}
	if t.protocol != "" && channels[t.protocol] == "" {
		return fmt.Errorf("unknown protocol %q: v1 to v5", t.protocol)
	}
	return nil
}

// connect returns a client of the CRI endpoint whose connection is already up, or nil where a URL was given.
func (t *target) connect(ctx context.Context) (runtimeapi.RuntimeServiceClient, error) {
	if t.endpoint == "" {
		return nil, nil
	}
	connection, err := grpc.NewClient(t.endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	client := runtimeapi.NewRuntimeServiceClient(connection)
	if _, err := client.Version(ctx, &runtimeapi.VersionRequest{}); err != nil {
		return nil, fmt.Errorf("%s does not answer: %w", t.endpoint, err)
	}
	return client, nil
}

// settings of the client: a node's certificate says nothing about 127.0.0.1.
func settings() *rest.Config {
	return &rest.Config{TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
}

// executor speaks the remote command protocol at a URL, as kubectl and crictl do it.
func (t *target) executor(address string) (remotecommand.Executor, error) {
	where, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	switch {
	case t.transport == "websocket" && t.protocol == "":
		return remotecommand.NewWebSocketExecutor(settings(), http.MethodGet, address)
	case t.transport == "websocket":
		return remotecommand.NewWebSocketExecutorForProtocols(settings(), http.MethodGet, address, channels[t.protocol])
	case t.protocol == "":
		return remotecommand.NewSPDYExecutor(settings(), http.MethodPost, where)
	}
	wrapper, upgrader, err := spdy.RoundTripperFor(settings())
	if err != nil {
		return nil, err
	}
	return remotecommand.NewSPDYExecutorForProtocols(wrapper, upgrader, http.MethodPost, where, channels[t.protocol])
}

// dialer connects to a port-forward URL, as kubectl and crictl do it.
func (t *target) dialer(address string) (httpstream.Dialer, error) {
	where, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	if t.transport == "websocket" {
		return portforward.NewSPDYOverWebsocketDialerForStreaming(where, settings())
	}
	wrapper, upgrader, err := spdy.RoundTripperFor(settings())
	if err != nil {
		return nil, err
	}
	return spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: wrapper}, http.MethodPost, where), nil
}
