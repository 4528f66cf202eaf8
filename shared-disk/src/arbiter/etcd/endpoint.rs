//! Where a member of an etcd cluster listens.

use std::fmt;
use std::str::FromStr;

/// `http://HOST:PORT`, as etcd's `--advertise-client-urls` says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint(String);

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let authority = text
            .strip_prefix("http://")
            .ok_or_else(|| match text.strip_prefix("https://") {
                Some(_) => format!("'{text}': ftvm speaks to etcd without TLS: write http://, on a private network"),
                None => format!("'{text}' is no etcd endpoint such as http://10.0.0.1:2379"),
            })?;
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        let (host, port) = authority
            .rsplit_once(':')
            .ok_or_else(|| format!("'{text}' names no port; etcd's is 2379"))?;
        let is_port = port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0);
        if !is_port {
            return Err(format!("'{text}' has no port from 1 to 65535"));
        }
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let is_host = match bracketed {
            Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
            None => {
                !host.is_empty()
                    && host
                        .bytes()
                        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
            }
        };
        if !is_host {
            return Err(format!("'{text}' names no host; an IPv6 address stands in brackets"));
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
        assert!("https://a:1".parse::<Endpoint>().unwrap_err().contains("without TLS"));
    }
}
