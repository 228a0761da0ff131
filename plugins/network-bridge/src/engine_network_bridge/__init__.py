"""Bridge networks: Linux bridge, veth, NAT and published ports by nftables maps."""
