package verify_test

import (
	"testing"

	"github.com/enrollgate/enrollgate/gateway/store/storetest"
)

func TestMain(m *testing.M) { storetest.Main(m) }
