//! Who may ask: by key, by the name the server is called by, and, of web pages, by their origin.
//!
//! A server on this machine can be asked by any page that a browser here shows: the page's origin must be this machine's own or a
//! listed one, and the server must have been called by a name of this machine, lest a stranger's name that leads here (DNS
//! rebinding) makes a page's origin its own.

use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use std::net::IpAddr;

use crate::error::ApiError;
use crate::respond::{self, Body};
use crate::server::Server;

/// What a browser may send.
const ALLOWED_HEADERS: &str = "authorization, content-type, x-api-key, anthropic-version, anthropic-beta";

/// Paths that need no key: those of probes, and the page, which asks for one.
const OPEN_PATHS: [&str; 7] = ["/health", "/ready", "/v1/health", "/v1/ready", "/", "/page.css", "/page.js"];

/// Checks a request before its body is read.
///
/// Errors: why it is not answered.
pub fn check(server: &Server, request: &Request<Incoming>) -> Result<(), ApiError> {
    let headers = request.headers();
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).or(request.uri().host());
    if let Some(host) = host
        && !is_own_name(server, name_of(host))
    {
        let message =
            format!("called by the name {}, which is not allowed (--allow-host)", brief(name_of(host)));
        return Err(ApiError::new(StatusCode::FORBIDDEN, "host_not_allowed", message));
    }
    if let Some(origin) = origin(headers)
        && !is_allowed(server, &origin, host)
    {
        let message = format!("asked by a page of {}, which is not allowed (--cors-origin)", brief(&origin));
        return Err(ApiError::new(StatusCode::FORBIDDEN, "origin_not_allowed", message));
    }
    let is_open = request.method() == Method::OPTIONS || OPEN_PATHS.contains(&request.uri().path());
    match &server.config.api_key {
        Some(key) if !is_open && !has_key(headers, key) => {
            let message = "wanted the server's key as \"Authorization: Bearer KEY\"";
            Err(ApiError::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message))
        }
        _ => Ok(()),
    }
}

fn has_key(headers: &HeaderMap, key: &str) -> bool {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let bearer = text(header::AUTHORIZATION).and_then(|value| value.split_once(' '));
    let bearer =
        bearer.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, key)| key.trim());
    let found = bearer.or(text(HeaderName::from_static("x-api-key"))).unwrap_or_default();
    // How long this takes says nothing of where they differ.
    let differ = found.bytes().zip(key.bytes()).fold(0, |differ, (a, b)| differ | (a ^ b));
    found.len() == key.len() && differ == 0
}

/// A host without its port.
fn name_of(host: &str) -> &str {
    match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    }
}

fn is_this_machine(name: &str) -> bool {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    name == "localhost"
        || name.ends_with(".localhost")
        || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn is_own_name(server: &Server, name: &str) -> bool {
    let config = &server.config;
    // Names lead anywhere, numbers only where they say. A key is no page's to know.
    let is_number = !server.is_loopback && name.parse::<IpAddr>().is_ok();
    is_this_machine(name)
        || is_number
        || (!server.is_loopback && config.api_key.is_some())
        || name.eq_ignore_ascii_case(&config.host)
        || config.allowed_hosts.iter().any(|allowed| allowed == "*" || allowed.eq_ignore_ascii_case(name))
}

/// The origin of the page that asks, where one does.
pub fn origin(headers: &HeaderMap) -> Option<String> {
    headers.get(header::ORIGIN).map(|origin| String::from_utf8_lossy(origin.as_bytes()).into_owned())
}

fn is_allowed(server: &Server, origin: &str, host: Option<&str>) -> bool {
    let listed = server.config.cors_origins.iter().any(|allowed| allowed == "*" || allowed == origin);
    let authority = origin.split_once("://").map(|(_, authority)| authority);
    // A page that this server gave out itself, or one of this machine.
    listed
        || authority.is_some_and(|authority| Some(authority) == host || is_this_machine(name_of(authority)))
}

/// The answer to a browser that asks whether it may ask.
pub fn preflight() -> Response<Body> {
    let mut response = respond::with_body(StatusCode::NO_CONTENT, "text/plain", "");
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST, OPTIONS"));
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(ALLOWED_HEADERS));
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    response
}

/// Lets a page that may ask read the answer.
pub fn allow_origin(server: &Server, origin: Option<&str>, headers: &mut HeaderMap) {
    let Some(origin) = origin.filter(|origin| is_allowed(server, origin, None)) else { return };
    if let Ok(value) = HeaderValue::from_str(origin) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, value);
        headers.insert(header::VARY, HeaderValue::from_static("origin"));
    }
}

/// The beginning of what a client sent, for errors.
pub fn brief(text: &str) -> String {
    format!("{:?}", text.chars().take(60).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_this_machine() {
        for host in
            ["localhost", "localhost:8080", "127.0.0.1:1", "[::1]:8080", "[::1]", "a.localhost", "LOCALHOST."]
        {
            assert!(is_this_machine(name_of(host)), "{host}");
        }
        for host in ["evil.com", "127.0.0.1.evil.com:80", "localhost.evil.com", "10.0.0.1", "", "[", ":"] {
            assert!(!is_this_machine(name_of(host)), "{host}");
        }
    }
}
