// Package tools pins what critest-config builds: crictl and critest.
//
// critest is the test binary of a package without any non-test file, so the go command cannot
// follow it as a tool. Importing the packages that its test imports puts them, and the sums of
// what they need, into go.mod and go.sum.
package tools

import (
	_ "sigs.k8s.io/cri-tools/pkg/benchmark"
	_ "sigs.k8s.io/cri-tools/pkg/validate"
)
