package main

import (
	"bufio"
	"errors"
	"flag"
	"io"
	"log"
	"net"
	"strconv"
	"strings"
)

// serveMode listens inside a pod, on all addresses, until it is killed. What a connection gets:
//
//	--echo     what it sends
//	--count    when it has ended its side, how many bytes it has sent, as a decimal number
//	--discard  the same, for as many bytes as it has announced with a decimal number and a newline
//	--source   as many zero bytes as it has ordered with a decimal number and a newline
func serveMode(arguments []string) (any, bool, error) {
	set := flag.NewFlagSet("serve", flag.ContinueOnError)
	services := map[string]func(*net.TCPConn) error{
		"echo": echo, "count": count, "discard": discard, "source": produce,
	}
	ports := map[string]*int{}
	for name := range services {
		ports[name] = set.Int(name, 0, "the port of this service; 0: it is not offered")
	}
	if err := set.Parse(arguments); err != nil {
		return nil, false, err
	}
	ended := make(chan error)
	offered := 0
	for name, service := range services {
		if *ports[name] == 0 {
			continue
		}
		offered++
		listener, err := net.ListenTCP("tcp", &net.TCPAddr{Port: *ports[name]})
		if err != nil {
			return nil, false, err
		}
		go func() { ended <- serve(listener, service) }()
	}
	if offered == 0 {
		return nil, false, errors.New("serve: give at least one of --echo, --count, --discard, --source")
	}
	return nil, false, <-ended
}

func serve(listener *net.TCPListener, service func(*net.TCPConn) error) error {
	for {
		connection, err := listener.AcceptTCP()
		if err != nil {
			return err
		}
		go func() {
			defer connection.Close()
			if err := service(connection); err != nil {
				log.Print(err)
			}
		}()
	}
}

func echo(connection *net.TCPConn) error {
	_, err := io.Copy(connection, connection)
	return err
}

func count(connection *net.TCPConn) error {
	size, err := io.Copy(io.Discard, connection)
	if err != nil {
		return err
	}
	_, err = io.WriteString(connection, strconv.FormatInt(size, 10))
	return err
}

func discard(connection *net.TCPConn) error {
	reader, size, err := announced(connection)
	if err != nil {
		return err
	}
	if size, err = io.CopyN(io.Discard, reader, size); err != nil {
		return err
	}
	_, err = io.WriteString(connection, strconv.FormatInt(size, 10))
	return err
}

func produce(connection *net.TCPConn) error {
	_, size, err := announced(connection)
	if err != nil {
		return err
	}
	_, err = io.CopyBuffer(onlyWriter{connection}, io.LimitReader(zeros{}, size), make([]byte, 256*1024))
	return err
}

// announced reads the line that a connection begins with; reader has what follows it.
func announced(connection *net.TCPConn) (reader *bufio.Reader, size int64, err error) {
	reader = bufio.NewReaderSize(connection, 256*1024)
	line, err := reader.ReadString('\n')
	if err != nil {
		return nil, 0, err
	}
	size, err = strconv.ParseInt(strings.TrimSuffix(line, "\n"), 10, 64)
	return reader, size, err
}
