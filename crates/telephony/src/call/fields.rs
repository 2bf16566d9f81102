//! Values of header fields that have a structure (RFC 3261, section 20).

use super::message::Method;

/// The parts of a list, at commas that stand neither in quotes nor in angle brackets.
pub(super) fn list(value: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(value);
    std::iter::from_fn(move || {
        let text = rest?;
        let end = outside(text, ',');
        rest = end.map(|end| &text[end + 1..]);
        Some(text[..end.unwrap_or(text.len())].trim())
    })
    .filter(|part| !part.is_empty())
}

/// Where a character stands first, neither in quotes nor in angle brackets.
fn outside(text: &str, wanted: char) -> Option<usize> {
    let (mut quoted, mut escaped, mut angle) = (false, false, false);
    for (at, letter) in text.char_indices() {
        if escaped {
            escaped = false;
        } else if quoted {
            match letter {
                '\\' => escaped = true,
                '"' => quoted = false,
                _ => {}
            }
        } else if letter == wanted && !angle {
            return Some(at);
        } else {
            match letter {
                '"' => quoted = true,
                '<' => angle = true,
                '>' => angle = false,
                _ => {}
            }
        }
    }
    None
}

/// The value of a parameter, `;name=value`; empty for one without.
fn parameter<'a>(parameters: &'a str, name: &str) -> Option<&'a str> {
    parameters.split(';').find_map(|part| {
        let (own, value) = part.split_once('=').unwrap_or((part, ""));
        own.trim().eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// An address with its parameters: From, To, Contact, Route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address<'a> {
    /// The URI, without angle brackets.
    pub uri: &'a str,
    parameters: &'a str,
}

impl<'a> Address<'a> {
    /// Reads one.
    pub fn parse(value: &'a str) -> Option<Self> {
        // Without brackets, what follows a semicolon belongs to the field and not to the URI.
        let Some(open) = outside(value, '<') else {
            let (uri, parameters) = value.split_once(';').unwrap_or((value, ""));
            let uri = uri.trim();
            return (!uri.is_empty() && !uri.contains(['"', '>']) && is_uri(uri))
                .then_some(Self { uri, parameters });
        };
        let (uri, rest) = value[open + 1..].split_once('>')?;
        let rest = rest.trim_start();
        let parameters = rest.strip_prefix(';').unwrap_or("");
        let plausible = is_uri(uri) && (rest.is_empty() || rest.starts_with(';'));
        plausible.then_some(Self { uri, parameters })
    }

    /// The tag.
    pub fn tag(&self) -> Option<&'a str> {
        parameter(self.parameters, "tag").filter(|tag| !tag.is_empty())
    }

    /// The URI's user.
    pub fn user(&self) -> Option<&'a str> {
        user(self.uri)
    }
}

/// Whether a text can stand in a request's first line: a URI has no white space.
fn is_uri(text: &str) -> bool {
    !text.is_empty() && !text.contains(|letter: char| letter.is_whitespace() || letter.is_control())
}

/// The user in a SIP URI.
pub(super) fn user(uri: &str) -> Option<&str> {
    let (scheme, rest) = uri.split_once(':')?;
    let known = scheme.eq_ignore_ascii_case("sip") || scheme.eq_ignore_ascii_case("sips");
    let (user, _) = rest.split_once('@').filter(|_| known)?;
    Some(user.split(':').next().unwrap_or(user))
}

/// One Via.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Via<'a> {
    parameters: &'a str,
}

impl<'a> Via<'a> {
    /// Reads one.
    pub fn parse(value: &'a str) -> Option<Self> {
        let (first, parameters) = value.split_once(';').unwrap_or((value, ""));
        let mut words = first.split_whitespace();
        let protocol = words.next()?;
        words.next()?;
        let known = protocol.to_ascii_uppercase().starts_with("SIP/2.0/");
        (known && words.next().is_none()).then_some(Self { parameters })
    }

    /// The transaction's name.
    pub fn branch(&self) -> Option<&'a str> {
        parameter(self.parameters, "branch").filter(|branch| !branch.is_empty())
    }
}

/// A sequence number and the method that it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CSeq {
    /// Below 2³¹ (RFC 3261, section 8.1.1.5).
    pub number: u32,
    /// Which kind of request.
    pub method: Method,
}

impl CSeq {
    /// Reads one.
    pub fn parse(value: &str) -> Option<Self> {
        let mut words = value.split_whitespace();
        let number = words.next()?;
        let digits = number.bytes().all(|byte| byte.is_ascii_digit());
        let number = number.parse().ok().filter(|n| digits && *n < 1 << 31)?;
        let method = Method::parse(words.next()?).ok()?;
        words.next().is_none().then_some(Self { number, method })
    }
}

#[cfg(test)]
mod tests {
    use super::{Address, CSeq, Via, list};
    use crate::call::Method;

    #[test]
    fn addresses_in_all_forms() {
        let read = |value| Address::parse(value).map(|a: Address<'_>| (a.uri, a.tag()));
        assert_eq!(read("<sip:a@b>;tag=1"), Some(("sip:a@b", Some("1"))));
        assert_eq!(read("sip:a@b;tag=1"), Some(("sip:a@b", Some("1"))));
        assert_eq!(
            read("\"A; \\\" <x>\" <sip:a@b;lr>;x;TAG=1"),
            Some(("sip:a@b;lr", Some("1")))
        );
        assert_eq!(read("A B <sip:a@b>"), Some(("sip:a@b", None)));
        for broken in [
            "",
            "<sip:a",
            "<>",
            "<sip:a>x",
            "\"open <sip:a>",
            "<sip:a b>",
            "sip:a\tb",
        ] {
            assert_eq!(read(broken), None, "{broken}");
        }
        assert_eq!(Address::parse("<sip:a:pw@b>").unwrap().user(), Some("a"));
        assert_eq!(Address::parse("<tel:5@b>").unwrap().user(), None);
        assert_eq!(Address::parse("<sip:host>").unwrap().user(), None);
    }

    #[test]
    fn commas_in_quotes_and_brackets_divide_nothing() {
        let parts: Vec<_> = list("\"a, b\" <sip:x?y=1,2>;q=1 , <sip:z>,,").collect();
        assert_eq!(parts, ["\"a, b\" <sip:x?y=1,2>;q=1", "<sip:z>"]);
    }

    #[test]
    fn vias_and_sequence_numbers() {
        let via = Via::parse("SIP/2.0/TCP a:5060 ; branch = z9hG4bK1;rport");
        assert_eq!(via.unwrap().branch(), Some("z9hG4bK1"));
        assert_eq!(Via::parse("SIP/2.0/TCP"), None);
        assert_eq!(Via::parse("HTTP/1.1 a"), None);
        let cseq = CSeq::parse("12 BYE").unwrap();
        assert_eq!((cseq.number, cseq.method), (12, Method::Bye));
        for broken in ["", "BYE", "-1 BYE", "+1 BYE", "2147483648 BYE", "1 BYE x"] {
            assert_eq!(CSeq::parse(broken), None, "{broken}");
        }
    }
}
