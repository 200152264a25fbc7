//! Where a request comes from: the peer of its connection or, behind proxies that the operator trusts, the client that
//! they name.

use std::fmt;
use std::net::IpAddr;

use axum::http::HeaderMap;
use ipnet::{IpNet, Ipv6Net};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Most hops that are looked at; nobody has as many proxies.
const MAX_HOPS: usize = 32;

/// What one client has to itself: an address of IPv4, a /64 of IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientNetwork(IpNet);

impl ClientNetwork {
    /// The network that `address` is in.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        let network = match address.to_canonical() {
            IpAddr::V4(address) => IpNet::from(IpAddr::V4(address)),
            // 64 is a length that there is.
            IpAddr::V6(address) => {
                Ipv6Net::new(address, 64).map_or(IpAddr::V6(address).into(), |net| net.trunc().into())
            }
        };
        Self(network)
    }
}

impl fmt::Display for ClientNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The header in which proxies say for whom they ask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ForwardedHeader {
    /// `X-Forwarded-For: CLIENT, PROXY`.
    #[default]
    XForwardedFor,
    /// `Forwarded: for=CLIENT, for=PROXY` (RFC 7239).
    Forwarded,
}

/// Whom to believe about the address of a client.
#[derive(Clone, Debug, Default)]
pub struct TrustedProxies {
    networks: Vec<IpNet>,
    header: ForwardedHeader,
}

impl TrustedProxies {
    /// Believes what proxies in `networks` write to `header`. The other header is never read: proxies pass it on from
    /// clients.
    #[must_use]
    pub fn new(networks: Vec<IpNet>, header: ForwardedHeader) -> Self {
        Self { networks, header }
    }

    /// The client that asks through a connection from `peer`: the last hop that is not trusted, since it was named by
    /// one that is.
    #[must_use]
    pub fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut client = peer.to_canonical();
        if !self.trusts(client) {
            return client;
        }
        let name = match self.header {
            ForwardedHeader::XForwardedFor => "x-forwarded-for",
            ForwardedHeader::Forwarded => "forwarded",
        };
        let values: Vec<&str> = headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).collect();
        for hop in values.iter().rev().flat_map(|value| value.rsplit(',')).take(MAX_HOPS) {
            let address = match self.header {
                ForwardedHeader::XForwardedFor => address(hop),
                ForwardedHeader::Forwarded => forwarded_for(hop).and_then(address),
            };
            // A hop that is unknown or hidden: nothing before it can be believed.
            let Some(address) = address else { return client };
            client = address;
            if !self.trusts(client) {
                return client;
            }
        }
        client
    }

    fn trusts(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|network| network.contains(&address))
    }
}

/// The `for` of one element of `Forwarded`.
fn forwarded_for(element: &str) -> Option<&str> {
    // Half a quotation: the comma before or behind it separates nothing, and what is quoted may be the client's.
    if !element.matches('"').count().is_multiple_of(2) {
        return None;
    }
    let mut pairs = element.split(';').filter_map(|pair| pair.split_once('='));
    let (_, value) = pairs.find(|(name, _)| name.trim().eq_ignore_ascii_case("for"))?;
    Some(value.trim().trim_matches('"'))
}

/// An address with or without a port.
fn address(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let host = match text.strip_prefix('[') {
        Some(bracketed) => bracketed.split_once(']')?.0,
        // A colon ends an address of IPv4 only.
        None => text.split_once(':').filter(|(_, port)| !port.contains(':')).map_or(text, |(host, _)| host),
    };
    host.parse::<IpAddr>().ok().map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(header: ForwardedHeader, peer: &str, values: &[(&'static str, &str)]) -> String {
        let trusted = ["10.0.0.0/8", "fd00::/8"].map(|network| network.parse().unwrap()).to_vec();
        let mut headers = HeaderMap::new();
        for (name, value) in values {
            headers.append(*name, value.parse().unwrap());
        }
        TrustedProxies::new(trusted, header).client(peer.parse().unwrap(), &headers).to_string()
    }

    #[test]
    fn proxies_are_believed_as_far_as_they_are_trusted() {
        let check = |peer: &str, values: &[&str], expected: &str| {
            let values: Vec<_> = values.iter().map(|value| ("x-forwarded-for", *value)).collect();
            assert_eq!(client(ForwardedHeader::XForwardedFor, peer, &values), expected, "{peer} {values:?}");
        };
        check("192.0.2.9", &["192.0.2.1"], "192.0.2.9");
        check("10.0.0.1", &[], "10.0.0.1");
        check("10.0.0.1", &["192.0.2.1"], "192.0.2.1");
        check("::ffff:10.0.0.1", &["192.0.2.1"], "192.0.2.1");
        // What the client wrote itself stands before what the proxy saw.
        check("10.0.0.1", &["203.0.113.7, 192.0.2.1"], "192.0.2.1");
        check("10.0.0.1", &["203.0.113.7", "192.0.2.1, 10.1.1.1"], "192.0.2.1");
        check("10.0.0.1", &["192.0.2.1:4711, [fd00::1]:80"], "192.0.2.1");
        check("10.0.0.1", &["2001:db8::7, fd00::1"], "2001:db8::7");
        check("10.0.0.1", &["192.0.2.1, unknown, 10.1.1.1"], "10.1.1.1");
        check("10.0.0.1", &["10.2.2.2, 10.1.1.1"], "10.2.2.2");
        check("10.0.0.1", &[""], "10.0.0.1");
    }

    #[test]
    fn only_the_configured_header_is_read() {
        let both = [("x-forwarded-for", "203.0.113.7"), ("forwarded", "for=192.0.2.1;proto=https")];
        assert_eq!(client(ForwardedHeader::Forwarded, "10.0.0.1", &both), "192.0.2.1");
        assert_eq!(client(ForwardedHeader::XForwardedFor, "10.0.0.1", &both), "203.0.113.7");
        let check = |value: &str, expected: &str| {
            assert_eq!(client(ForwardedHeader::Forwarded, "10.0.0.1", &[("forwarded", value)]), expected, "{value}");
        };
        check(r#"for="[2001:db8::7]:4711", For=10.1.1.1;by=10.0.0.1"#, "2001:db8::7");
        check("for=_hidden", "10.0.0.1");
        check("proto=https", "10.0.0.1");
        check(r#"for=192.0.2.1;host="a, for=203.0.113.7""#, "10.0.0.1");
    }
}
