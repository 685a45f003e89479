"""The form of neighbour advertisements; what they do is tested where there are neighbours, in tests/freebsd."""

from ipaddress import ip_address

from cni_plugins.freebsd.advertising import packet


def test_a_packet_is_the_one_of_the_rfc():
    made = packet("02:00:5e:10:20:30", ip_address("2001:db8::7"))
    assert made[:2] == bytes([136, 0])
    assert made[2:4] == bytes(2), "the kernel computes the checksum"
    assert made[4:8] == bytes([0x20, 0, 0, 0]), "override, not solicited, not of a router"
    assert made[8:24] == ip_address("2001:db8::7").packed
    assert made[24:] == bytes.fromhex("020102005e102030"), "the MAC, in units of eight bytes"
