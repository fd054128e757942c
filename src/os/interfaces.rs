//! The addresses of this machine.

use std::net::IpAddr;

use nix::ifaddrs::getifaddrs;

/// Those that other machines may know: neither loopback nor link-local ones, which mean nothing without an interface.
pub fn addresses() -> Vec<IpAddr> {
    let interfaces = getifaddrs().into_iter().flatten();
    let ip_of = |address: nix::sys::socket::SockaddrStorage| {
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
    };
    let all = interfaces.filter_map(|interface| ip_of(interface.address?));
    let is_known_elsewhere = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local(),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local(),
    };
    all.filter(is_known_elsewhere).collect()
}
