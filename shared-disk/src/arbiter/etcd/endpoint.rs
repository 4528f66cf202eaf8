//! Where a member of an etcd cluster listens.

use std::fmt;
use std::str::FromStr;

use crate::textfile::is_plain_byte;

/// `http://HOST:PORT`, as etcd's `--advertise-client-urls` says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint(String);

/// Why a text is no endpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// Another scheme, or none.
    #[error("'{0}' is no etcd endpoint such as http://10.0.0.1:2379")]
    Scheme(String),
    /// HTTPS.
    #[error("'{0}': ftvm speaks to etcd without TLS: write http://, on a private network")]
    Tls(String),
    /// No colon behind the host.
    #[error("'{0}' names no port; etcd's is 2379")]
    NoPort(String),
    /// A port that is no number, or none that can be used.
    #[error("'{0}' has no port from 1 to 65535")]
    Port(String),
    /// No name and no address.
    #[error("'{0}' names no host; an IPv6 address stands in brackets")]
    Host(String),
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let whole = || text.to_owned();
        let authority = text
            .strip_prefix("http://")
            .ok_or_else(|| match text.strip_prefix("https://") {
                Some(_) => EndpointError::Tls(whole()),
                None => EndpointError::Scheme(whole()),
            })?;
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        let (host, port) = authority
            .rsplit_once(':')
            .ok_or_else(|| EndpointError::NoPort(whole()))?;
        let is_port = port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0);
        if !is_port {
            return Err(EndpointError::Port(whole()));
        }
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let is_host = match bracketed {
            Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
            None => !host.is_empty() && host.bytes().all(is_plain_byte),
        };
        if !is_host {
            return Err(EndpointError::Host(whole()));
        }
        Ok(Endpoint(format!("http://{authority}")))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints() {
        for good in [
            "http://a:1",
            "http://10.0.0.1:2379",
            "http://[::1]:65535",
            "http://a.b-c_d:2379",
        ] {
            assert_eq!(
                good.parse::<Endpoint>().map(|endpoint| endpoint.to_string()),
                Ok(good.to_owned())
            );
        }
        assert_eq!("http://a:1/".parse::<Endpoint>(), "http://a:1".parse());
        for bad in [
            "",
            "a:1",
            "https://a:1",
            "http://a",
            "http://:1",
            "http://a:",
            "http://a:0",
            "http://a:+1",
            "http://a:65536",
            "http://a:1/x",
            "http://u@a:1",
            "http://::1:2379",
            "http://[x]:1",
            "http://a b:1",
        ] {
            assert!(bad.parse::<Endpoint>().is_err(), "{bad}");
        }
        let error = "https://a:1".parse::<Endpoint>().unwrap_err().to_string();
        assert!(error.contains("without TLS"), "{error}");
    }
}
