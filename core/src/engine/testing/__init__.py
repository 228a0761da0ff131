"""For plugin authors and for our own tests: conformance suites for every kind of driver, and fakes that pass them."""
