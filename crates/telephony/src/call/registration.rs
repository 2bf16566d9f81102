//! One REGISTER (RFC 3261, section 10.2).

use super::{Client, Failure, Fired, Identity, Message, Method, dialog::Dialog};
use std::time::Duration;

/// How long a registration holds, in seconds: longer than a run.
const EXPIRES: u32 = 3600;

/// A user agent that makes its contact known.
#[derive(Debug)]
pub struct Registration {
    client: Option<Client>,
    /// How it ended; `None` while it waits.
    pub outcome: Option<Result<(), Failure>>,
    /// How often it was sent again.
    pub resent: u32,
}

impl Registration {
    /// Begins; gives the request to send.
    pub fn new(identity: &Identity, call_id: &str, tag: &str, now: Duration) -> (Self, Message) {
        let mut dialog = Dialog::caller(identity.clone(), &identity.user, call_id, tag);
        let mut request = dialog.request(Method::Register);
        request.start = super::Start::Request {
            method: Method::Register,
            uri: format!("sip:{}", identity.domain),
        };
        request.add("Expires", EXPIRES.to_string());
        let client = Client::new(request.clone(), now, identity.transport);
        let registration = Self {
            client,
            outcome: None,
            resent: 0,
        };
        (registration, request)
    }

    /// Takes an answer.
    pub fn receive(&mut self, now: Duration, answer: &Message) {
        let Some(client) = self.client.as_mut().filter(|client| client.matches(answer)) else {
            return;
        };
        let code = answer.code().unwrap_or(0);
        if code < 200 {
            client.provisional(now);
            return;
        }
        self.client = None;
        self.outcome = Some(if code < 300 {
            Ok(())
        } else {
            Err(Failure::Refused(Method::Register, code))
        });
    }

    /// When something is due.
    pub fn deadline(&self) -> Option<Duration> {
        self.client.as_ref()?.deadline()
    }

    /// What has to be sent now.
    pub fn tick(&mut self, now: Duration) -> Option<Message> {
        match self.client.as_mut()?.fire(now) {
            Fired::Nothing => None,
            Fired::Again => {
                self.resent += 1;
                self.client.as_ref().map(|client| client.request.clone())
            }
            Fired::TimedOut => {
                self.client = None;
                self.outcome = Some(Err(Failure::TimedOut(Method::Register)));
                None
            }
        }
    }
}
