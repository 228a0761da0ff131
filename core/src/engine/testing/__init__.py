"""For plugin authors and our own tests: conformance suites for every kind of driver, and fakes that pass them.

A driver's test is a subclass and one fixture::

    from engine.testing.volumes import VolumeConformance

    class TestMyVolumes(VolumeConformance):
        @pytest.fixture
        def driver(self, driver_context):
            return MyVolumes(driver_context("mine"))

Every test checks one promise of the driver's contract, with an oracle of its own (/proc, files, mountinfo) rather than
the driver's word, and ends with a leak check. Powers a driver does not claim must raise `NotSupported`; tests of them
are then skipped with that reason. The fixtures come from the pytest plugin the core installs.
"""
