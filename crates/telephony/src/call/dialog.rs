//! What two user agents share (RFC 3261, section 12), and the requests in it.

use super::{Message, Method, Transport};
use std::net::SocketAddr;

/// Who a user agent is, and how it reaches its server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// What it sends over.
    pub transport: Transport,
    /// Where it sends from: its server reaches it there, on a connection of its own making too.
    pub local: SocketAddr,
    /// The domain of all users.
    pub domain: String,
    /// Its user's name.
    pub user: String,
}

impl Identity {
    /// Its address of record, as a URI.
    pub fn uri(&self) -> String {
        format!("sip:{}@{}", self.user, self.domain)
    }

    /// Its contact.
    pub fn contact(&self) -> String {
        let transport = match self.transport {
            Transport::Udp => "",
            Transport::Tcp => ";transport=tcp",
            Transport::Tls => ";transport=tls",
        };
        format!("<sip:{}@{}{transport}>", self.user, self.local)
    }

    /// A Via for a new transaction.
    pub fn via(&self, branch: &str) -> String {
        format!(
            "SIP/2.0/{} {};branch=z9hG4bK{branch};rport",
            self.transport.name(),
            self.local
        )
    }
}

/// One side's view of a dialog; before the other's tag is known, of one to be.
#[derive(Debug, Clone)]
pub struct Dialog {
    /// This side.
    pub identity: Identity,
    call_id: String,
    /// From or To of this side's requests, with tags.
    local: String,
    remote: String,
    /// The other's contact; at first the address that is called.
    target: String,
    routes: Vec<String>,
    sequence: u32,
    /// The other's last sequence number.
    pub(super) remote_sequence: Option<u32>,
    /// What this side's branches begin with, and how many there were.
    tag: String,
    branches: u32,
}

impl Dialog {
    /// For a call to `callee` (a user's name). `tag` is one that no other dialog has.
    pub fn caller(identity: Identity, callee: &str, call_id: &str, tag: &str) -> Self {
        let target = format!("sip:{callee}@{}", identity.domain);
        Self {
            call_id: call_id.to_owned(),
            local: format!("<{}>;tag={tag}", identity.uri()),
            remote: format!("<{target}>"),
            target,
            routes: Vec::new(),
            sequence: 0,
            remote_sequence: None,
            tag: tag.to_owned(),
            branches: 0,
            identity,
        }
    }

    /// For a call that came with `invite`; `None` if it lacks what a dialog needs.
    pub fn callee(identity: Identity, invite: &Message, tag: &str) -> Option<Self> {
        let remote = invite.field("From")?;
        invite.address("From")?.tag()?;
        Some(Self {
            call_id: invite.call_id()?.to_owned(),
            local: format!("{};tag={tag}", invite.field("To")?),
            remote: remote.to_owned(),
            target: invite.address("Contact")?.uri.to_owned(),
            routes: invite.list("Record-Route").map(str::to_owned).collect(),
            sequence: 0,
            remote_sequence: Some(invite.cseq()?.number),
            tag: tag.to_owned(),
            branches: 0,
            identity,
        })
    }

    /// What both sides call it by.
    pub fn call_id(&self) -> &str {
        &self.call_id
    }

    /// Takes the other side's part from its answer to the first INVITE; gives whether it has all.
    pub fn establish(&mut self, answer: &Message) -> bool {
        let Some((to, contact)) = answer.field("To").zip(answer.address("Contact")) else {
            return false;
        };
        if answer.address("To").and_then(|to| to.tag()).is_none() {
            return false;
        }
        to.clone_into(&mut self.remote);
        contact.uri.clone_into(&mut self.target);
        self.routes = answer.list("Record-Route").map(str::to_owned).collect();
        self.routes.reverse();
        true
    }

    /// Takes a new contact of the other's (section 12.2.1.2).
    pub fn refresh(&mut self, message: &Message) {
        if let Some(contact) = message.address("Contact") {
            contact.uri.clone_into(&mut self.target);
        }
    }

    /// A new request.
    pub fn request(&mut self, method: Method) -> Message {
        self.sequence += 1;
        let mut request = self.numbered(method, self.sequence);
        request.add("Contact", self.identity.contact());
        request
    }

    /// The ACK to a 2xx (section 13.2.2.4): a transaction of its own, with its INVITE's number.
    pub fn ack(&mut self, invite: &Message) -> Message {
        let number = invite.cseq().map_or(self.sequence, |cseq| cseq.number);
        self.numbered(Method::Ack, number)
    }

    fn numbered(&mut self, method: Method, number: u32) -> Message {
        self.branches += 1;
        let branch = format!("{}-{}", self.tag, self.branches);
        let cseq = format!("{number} {}", method.name());
        let mut request = Message::request(method, self.target.clone());
        request.add("Via", self.identity.via(&branch));
        for route in &self.routes {
            request.add("Route", route.clone());
        }
        request.add("Max-Forwards", "70");
        request.add("From", self.local.clone());
        request.add("To", self.remote.clone());
        request.add("Call-ID", self.call_id.clone());
        request.add("CSeq", cseq);
        request
    }

    /// An answer of this side's to a request of the other's: with this side's tag, and its contact.
    pub fn answer(&self, request: &Message, code: u16, reason: &str) -> Message {
        let mut answer = Message::answer(request, code, reason);
        answer.set("To", self.local.clone());
        answer.add("Contact", self.identity.contact());
        answer
    }
}

/// A request that belongs to an INVITE: its CANCEL (section 9.1), or the ACK to an answer that is no 2xx (section 17.1.1.3), which
/// has that answer's To.
pub(super) fn companion(invite: &Message, method: Method, answer: Option<&Message>) -> Message {
    let uri = match &invite.start {
        super::Start::Request { uri, .. } => uri.clone(),
        super::Start::Response { .. } => String::new(),
    };
    let number = invite.cseq().map_or(0, |cseq| cseq.number);
    let cseq = format!("{number} {}", method.name());
    let mut request = Message::request(method, uri);
    for name in ["Via", "Route", "Max-Forwards", "From", "To", "Call-ID"] {
        let source = answer.filter(|_| name == "To").unwrap_or(invite);
        for value in source.fields(name) {
            request.add(name, value);
        }
    }
    request.add("CSeq", cseq);
    request
}

#[cfg(test)]
mod tests {
    use super::{Dialog, Identity, companion};
    use crate::call::{Message, Method, Start, Transport};

    fn identity(user: &str) -> Identity {
        Identity {
            transport: Transport::Tcp,
            local: "192.0.2.254:4000".parse().unwrap(),
            domain: "192.0.2.100".into(),
            user: user.into(),
        }
    }

    fn uri(message: &Message) -> &str {
        match &message.start {
            Start::Request { uri, .. } => uri,
            Start::Response { .. } => panic!("an answer"),
        }
    }

    /// Both sides of a dialog through two proxies that record their routes.
    fn both() -> (Dialog, Dialog, Message, Message) {
        let mut alice = Dialog::caller(identity("a"), "b", "c1", "ta");
        let invite = alice.request(Method::Invite);
        let mut forwarded = invite.clone();
        forwarded.add("Record-Route", "<sip:second;lr>");
        forwarded.add("Record-Route", "<sip:first;lr>");
        let bob = Dialog::callee(identity("b"), &forwarded, "tb").unwrap();
        let answer = bob.answer(&forwarded, 200, "OK");
        assert!(alice.establish(&answer));
        (alice, bob, invite, answer)
    }

    #[test]
    fn requests_go_back_the_way_they_came() {
        let (mut alice, mut bob, invite, _) = both();
        assert_eq!(uri(&invite), "sip:b@192.0.2.100");
        assert_eq!(invite.fields("Route").count(), 0);
        let routes = |m: &Message| m.fields("Route").map(str::to_owned).collect::<Vec<_>>();
        let bye = alice.request(Method::Bye);
        assert_eq!(uri(&bye), "sip:b@192.0.2.254:4000;transport=tcp");
        assert_eq!(routes(&bye), ["<sip:first;lr>", "<sip:second;lr>"]);
        let return_bye = bob.request(Method::Bye);
        assert_eq!(uri(&return_bye), "sip:a@192.0.2.254:4000;transport=tcp");
        assert_eq!(routes(&return_bye), ["<sip:second;lr>", "<sip:first;lr>"]);
        assert_eq!(bye.address("To").unwrap().tag(), Some("tb"));
        assert_eq!(return_bye.address("To").unwrap().tag(), Some("ta"));
        assert_eq!(bye.cseq().unwrap().number, 2);
    }

    #[test]
    fn an_ack_has_its_invites_number_and_a_branch_of_its_own() {
        let (mut alice, _, invite, _) = both();
        let ack = alice.ack(&invite);
        assert_eq!(ack.field("CSeq"), Some("1 ACK"));
        assert_ne!(ack.via().unwrap().branch(), invite.via().unwrap().branch());
    }

    #[test]
    fn companions_have_their_invites_branch() {
        let (_, _, invite, answer) = both();
        let cancel = companion(&invite, Method::Cancel, None);
        assert_eq!(cancel.field("Via"), invite.field("Via"));
        assert_eq!(cancel.field("CSeq"), Some("1 CANCEL"));
        assert_eq!(cancel.address("To").unwrap().tag(), None);
        let ack = companion(&invite, Method::Ack, Some(&answer));
        assert_eq!(ack.address("To").unwrap().tag(), Some("tb"));
        assert_eq!(uri(&ack), uri(&invite));
    }

    #[test]
    fn an_answer_without_tag_or_contact_makes_no_dialog() {
        let (mut alice, _, invite, answer) = both();
        assert!(!alice.establish(&Message::answer(&invite, 200, "OK")));
        let mut tagless = answer;
        tagless.set("To", "<sip:b@192.0.2.100>");
        assert!(!alice.establish(&tagless));
    }
}
