//! SIP messages (RFC 3261, section 7).

use super::fields::{Address, CSeq, Via, list};
use std::fmt::Write as _;
use thiserror::Error;

/// The longest message that is read.
pub(super) const LONGEST: usize = 64 << 10;
/// The most lines that a header may have.
const MOST_FIELDS: usize = 256;
/// SIP's version, in every message's first line.
const VERSION: &str = "SIP/2.0";

/// Why bytes are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("not a SIP message: {0}")]
pub struct Malformed(pub(super) &'static str);

/// What a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Method {
    /// A binding of an address.
    Register,
    /// A call, or a change of one.
    Invite,
    /// The final answer to an INVITE has come.
    Ack,
    /// No answer to an INVITE is wanted any more.
    Cancel,
    /// A call ends.
    Bye,
    /// What the other can do, or whether it lives.
    Options,
    /// Another one.
    Other(String),
}

impl Method {
    /// Its name on the wire.
    pub fn name(&self) -> &str {
        match self {
            Self::Register => "REGISTER",
            Self::Invite => "INVITE",
            Self::Ack => "ACK",
            Self::Cancel => "CANCEL",
            Self::Bye => "BYE",
            Self::Options => "OPTIONS",
            Self::Other(name) => name,
        }
    }

    /// Reads a name; case matters (RFC 3261, section 7.1).
    ///
    /// # Errors
    /// It is not a token.
    pub fn parse(name: &str) -> Result<Self, Malformed> {
        Ok(match name {
            "REGISTER" => Self::Register,
            "INVITE" => Self::Invite,
            "ACK" => Self::Ack,
            "CANCEL" => Self::Cancel,
            "BYE" => Self::Bye,
            "OPTIONS" => Self::Options,
            _ if is_token(name) => Self::Other(name.to_owned()),
            _ => return Err(Malformed("a method that is no token")),
        })
    }
}

/// A message's first line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// A request.
    Request {
        /// What it asks for.
        method: Method,
        /// Of whom.
        uri: String,
    },
    /// An answer.
    Response {
        /// 100 to 699.
        code: u16,
        /// For people.
        reason: String,
    },
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The first line.
    pub start: Start,
    /// Names (in their long form) and values, in order. `Content-Length` is not among them: it is the body's.
    fields: Vec<(String, String)>,
    /// What follows the header.
    pub body: Vec<u8>,
}

impl Message {
    /// A request without any fields.
    pub fn request(method: Method, uri: impl Into<String>) -> Self {
        let uri = uri.into();
        Self::new(Start::Request { method, uri })
    }

    /// An answer with what it takes over from its request (RFC 3261, section 8.2.6.2).
    pub fn answer(request: &Self, code: u16, reason: &str) -> Self {
        let reason = reason.to_owned();
        let mut answer = Self::new(Start::Response { code, reason });
        let taken = ["Via", "Record-Route", "From", "To", "Call-ID", "CSeq"];
        for (name, value) in &request.fields {
            if taken.contains(&&**name) {
                answer.add(name, value.clone());
            }
        }
        answer
    }

    fn new(start: Start) -> Self {
        Self {
            start,
            fields: Vec::new(),
            body: Vec::new(),
        }
    }

    /// Adds a field at the end. A line break in it would begin another one: it becomes a space.
    pub fn add(&mut self, name: &str, value: impl Into<String>) {
        let mut value = value.into();
        if value.contains(['\r', '\n']) {
            value = value.replace(['\r', '\n'], " ");
        }
        self.fields.push((name.to_owned(), value));
    }

    /// Puts another value in the place of a field's first one; adds it if there is none.
    pub fn set(&mut self, name: &str, value: impl Into<String>) {
        let at = self.fields.iter().position(|(own, _)| own == name);
        self.add(name, value);
        if let Some(at) = at {
            self.fields.swap_remove(at);
        }
    }

    /// A field's first value.
    pub fn field(&self, name: &str) -> Option<&str> {
        let (_, value) = self.fields.iter().find(|(own, _)| own == name)?;
        Some(value)
    }

    /// All values of a field, one a line of the header.
    pub fn fields<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.fields
            .iter()
            .filter(move |(own, _)| own == name)
            .map(|(_, value)| value.as_str())
    }

    /// The method, of a request.
    pub fn method(&self) -> Option<&Method> {
        match &self.start {
            Start::Request { method, .. } => Some(method),
            Start::Response { .. } => None,
        }
    }

    /// The status code, of an answer.
    pub fn code(&self) -> Option<u16> {
        match self.start {
            Start::Request { .. } => None,
            Start::Response { code, .. } => Some(code),
        }
    }

    /// The topmost Via.
    pub fn via(&self) -> Option<Via<'_>> {
        Via::parse(list(self.field("Via")?).next()?)
    }

    /// Sequence number and method.
    pub fn cseq(&self) -> Option<CSeq> {
        CSeq::parse(self.field("CSeq")?)
    }

    /// What `Call-ID` says.
    pub fn call_id(&self) -> Option<&str> {
        self.field("Call-ID")
    }

    /// One of the fields that hold a single address.
    pub fn address(&self, name: &str) -> Option<Address<'_>> {
        Address::parse(self.field(name)?)
    }

    /// All values of a field that is a list.
    pub fn list<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.fields(name).flat_map(list)
    }

    /// The bytes to send.
    pub fn encode(&self) -> Vec<u8> {
        let mut text = match &self.start {
            Start::Request { method, uri } => format!("{} {uri} {VERSION}\r\n", method.name()),
            Start::Response { code, reason } => format!("{VERSION} {code} {reason}\r\n"),
        };
        for (name, value) in &self.fields {
            // Writing to a string does not fail.
            let _ = write!(text, "{name}: {value}\r\n");
        }
        let _ = write!(text, "Content-Length: {}\r\n\r\n", self.body.len());
        let mut bytes = text.into_bytes();
        bytes.extend(&self.body);
        bytes
    }

    /// Reads a datagram: what follows the body is nothing (RFC 3261, section 18.3).
    ///
    /// # Errors
    /// It is not one whole message.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        if bytes.len() > LONGEST {
            return Err(Malformed("too long"));
        }
        let end = header_end(bytes).ok_or(Malformed("the header does not end"))?;
        let (mut message, length) = Self::parse_header(&bytes[..end])?;
        let rest = &bytes[end..];
        let length = length.unwrap_or(rest.len());
        let body = rest
            .get(..length)
            .ok_or(Malformed("the body is cut short"))?;
        message.body = body.to_vec();
        Ok(message)
    }

    /// Reads a header with its empty line; gives the body's length as the header has it.
    pub(super) fn parse_header(bytes: &[u8]) -> Result<(Self, Option<usize>), Malformed> {
        let text =
            std::str::from_utf8(bytes).map_err(|_| Malformed("a header that is no UTF-8"))?;
        let text = text
            .strip_suffix("\r\n\r\n")
            .ok_or(Malformed("the header does not end"))?;
        let mut lines = text.split("\r\n");
        let mut message = Self::new(parse_start(lines.next().unwrap_or_default())?);
        for line in lines {
            if line.contains(['\r', '\n', '\0']) {
                return Err(Malformed("a line break that is none"));
            }
            // A line that begins with white space goes on with the one before.
            if line.starts_with([' ', '\t']) {
                let (_, value) = message
                    .fields
                    .last_mut()
                    .ok_or(Malformed("the first field begins with white space"))?;
                let more = line.trim();
                if !value.is_empty() && !more.is_empty() {
                    value.push(' ');
                }
                value.push_str(more);
                continue;
            }
            let (name, value) = line.split_once(':').ok_or(Malformed("a field without :"))?;
            let name = name.trim_end();
            if !is_token(name) {
                return Err(Malformed("a field's name that is no token"));
            }
            if message.fields.len() == MOST_FIELDS {
                return Err(Malformed("too many fields"));
            }
            message.fields.push((long(name), value.trim().to_owned()));
        }
        let length = message.take_length()?;
        Ok((message, length))
    }

    /// Takes `Content-Length` out of the fields.
    fn take_length(&mut self) -> Result<Option<usize>, Malformed> {
        const NAME: &str = "Content-Length";
        let mut length = None;
        for value in self.fields(NAME) {
            if !value.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(Malformed("a length that is no number"));
            }
            let value: usize = value
                .parse()
                .map_err(|_| Malformed("a length that is no number"))?;
            if value > LONGEST || length.is_some_and(|other| other != value) {
                return Err(Malformed("a length that cannot be"));
            }
            length = Some(value);
        }
        self.fields.retain(|(name, _)| name != NAME);
        Ok(length)
    }
}

/// Where the body begins, behind the first empty line.
pub(super) fn header_end(bytes: &[u8]) -> Option<usize> {
    let at = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    Some(at + 4)
}

fn parse_start(line: &str) -> Result<Start, Malformed> {
    let mut words = line.splitn(3, ' ');
    let (first, second) = (words.next(), words.next());
    let (Some(first), Some(second)) = (first, second) else {
        return Err(Malformed("a first line of one word"));
    };
    let third = words.next();
    if line.contains(['\r', '\n', '\0']) {
        return Err(Malformed("a line break that is none"));
    }
    if first == VERSION {
        let is_code = second.len() == 3 && second.bytes().all(|byte| byte.is_ascii_digit());
        let code = second.parse().ok().filter(|_| is_code);
        let code = code.filter(|code| (100..700).contains(code));
        return Ok(Start::Response {
            code: code.ok_or(Malformed("a status code that cannot be"))?,
            reason: third.unwrap_or_default().to_owned(),
        });
    }
    if third != Some(VERSION) {
        return Err(Malformed("another version"));
    }
    if second.is_empty() {
        return Err(Malformed("a request without URI"));
    }
    Ok(Start::Request {
        method: Method::parse(first)?,
        uri: second.to_owned(),
    })
}

/// A field's name in its long form, and as we write it if we know it (RFC 3261, section 7.3.3).
fn long(name: &str) -> String {
    const NAMES: [(&str, &str); 14] = [
        ("v", "Via"),
        ("f", "From"),
        ("t", "To"),
        ("i", "Call-ID"),
        ("m", "Contact"),
        ("l", "Content-Length"),
        ("c", "Content-Type"),
        ("e", "Content-Encoding"),
        ("k", "Supported"),
        ("s", "Subject"),
        ("", "CSeq"),
        ("", "Route"),
        ("", "Record-Route"),
        ("", "Max-Forwards"),
    ];
    NAMES
        .iter()
        .find(|(short, long)| name.eq_ignore_ascii_case(short) || name.eq_ignore_ascii_case(long))
        .map_or_else(|| name.to_owned(), |(_, long)| (*long).to_owned())
}

/// A token (RFC 3261, section 25.1).
fn is_token(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-.!%*_+`'~".contains(&byte))
}

#[cfg(test)]
mod tests;
