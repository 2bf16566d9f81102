//! One end of one call, from its INVITE to its end. Pure: it is given the time, what was received, and what its user wants;
//! it gives what is to be sent and what has happened.

mod answers;
mod requests;
#[cfg(test)]
mod tests;

use super::{
    Client, Dialog, Fired, Identity, Message, Method, PATIENCE, Session, T1, T2, dialog::companion,
};
use answers::Repeated;
use std::time::Duration;

/// What has happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The other end rings.
    Ringing,
    /// The other end has answered, or confirmed this end's answer: media may flow to where its description says.
    Up(Session),
    /// A re-INVITE of this end's has been answered.
    Changed(Session),
    /// The call has ended as it should: a BYE was answered with 2xx, at either end.
    Ended,
    /// The call was cancelled before it was answered.
    Cancelled,
    /// Something went wrong.
    Failed(Failure),
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// No answer to a request.
    TimedOut(Method),
    /// A final answer that is no 2xx.
    Refused(Method, u16),
    /// An answer to INVITE was never acknowledged.
    NoAck,
    /// An offer or an answer that cannot be used.
    Incompatible,
    /// The connection was closed, or could not be made.
    ConnectionLost,
}

/// When each step was; `None` for one that was not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    /// The INVITE was sent, or came.
    pub invited: Option<Duration>,
    /// The first 180 came, or was sent.
    pub ringing: Option<Duration>,
    /// The answer came, or was sent.
    pub answered: Option<Duration>,
    /// The ACK was sent, or came.
    pub confirmed: Option<Duration>,
    /// A re-INVITE of this end's was sent.
    pub changing: Option<Duration>,
    /// Its answer came.
    pub changed: Option<Duration>,
    /// A CANCEL was sent, or came.
    pub cancelling: Option<Duration>,
    /// A BYE was sent, or came.
    pub ending: Option<Duration>,
    /// The call ended or was cancelled, as it should.
    pub ended: Option<Duration>,
    /// How often this end sent something again because an answer did not come in time.
    pub resent: u32,
    /// What went wrong first.
    pub failure: Option<Failure>,
}

/// What comes out of each step.
#[derive(Debug, Default)]
pub struct Out {
    /// To be sent, in order.
    pub messages: Vec<Message>,
    /// What has happened, in order.
    pub events: Vec<Event>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The caller's INVITE waits for its answer.
    Calling,
    /// The same, and it was cancelled.
    Cancelling,
    /// The callee has not answered yet.
    Ringing,
    /// Answered.
    Up,
    /// Over, for better or worse.
    Over,
}

/// One end of one call.
#[derive(Debug)]
pub struct Agent {
    dialog: Dialog,
    session: Session,
    phase: Phase,
    clients: Vec<Client>,
    /// The caller's first INVITE, or the one that the callee was called with.
    invite: Option<Message>,
    /// The ACK of each INVITE that was answered, by the INVITE's branch: a repeated answer gets it again.
    acks: Vec<(String, Message)>,
    /// Answers to the other end's requests, by branch and method: a repeated request gets its own again.
    replies: Vec<(String, Method, Message)>,
    repeated: Option<Repeated>,
    /// The other's description, of the callee until the call is confirmed.
    offered: Option<Session>,
    record: Record,
}

impl Agent {
    /// Calls `callee`. `call_id` and `tag` are such as no other call has; `session` is where this end wants its media.
    pub fn call(
        identity: Identity,
        callee: &str,
        call_id: &str,
        tag: &str,
        session: Session,
        now: Duration,
        out: &mut Out,
    ) -> Self {
        let mut agent = Self::new(
            Dialog::caller(identity, callee, call_id, tag),
            session,
            Phase::Calling,
        );
        agent.record.invited = Some(now);
        let invite = agent.offer();
        agent.invite = Some(invite.clone());
        agent.send(invite, now, out);
        agent
    }

    /// Is called with `invite`, and rings at once; `None` if that lacks what it needs. `session` as for [`Self::call`].
    pub fn called(
        identity: Identity,
        invite: &Message,
        tag: &str,
        session: Session,
        now: Duration,
        out: &mut Out,
    ) -> Option<Self> {
        let dialog = Dialog::callee(identity, invite, tag)?;
        let mut agent = Self::new(dialog, session, Phase::Ringing);
        agent.record.invited = Some(now);
        agent.invite = Some(invite.clone());
        let offer = Session::parse(&invite.body);
        agent.offered = offer.filter(|offer| agent.session.answer(offer).is_some());
        if agent.offered.is_none() {
            let refusal = agent.dialog.answer(invite, 488, "Not Acceptable Here");
            agent.answer_finally(refusal, now, out);
            agent.fail(Failure::Incompatible, out);
            return Some(agent);
        }
        let ringing = agent.dialog.answer(invite, 180, "Ringing");
        agent.reply(ringing, out);
        agent.record.ringing = Some(now);
        out.events.push(Event::Ringing);
        Some(agent)
    }

    fn new(dialog: Dialog, session: Session, phase: Phase) -> Self {
        Self {
            dialog,
            session,
            phase,
            clients: Vec::new(),
            invite: None,
            acks: Vec::new(),
            replies: Vec::new(),
            repeated: None,
            offered: None,
            record: Record::default(),
        }
    }

    /// When each step was.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// What both ends call the call by.
    pub fn call_id(&self) -> &str {
        self.dialog.call_id()
    }

    /// Whether nothing more will happen by itself.
    pub fn is_over(&self) -> bool {
        self.phase == Phase::Over
    }

    /// Whether the call is answered and has not ended.
    pub fn is_up(&self) -> bool {
        self.phase == Phase::Up
    }

    /// Answers a call that rings.
    pub fn answer(&mut self, now: Duration, out: &mut Out) {
        if self.phase != Phase::Ringing {
            return;
        }
        let Some((invite, offer)) = self.invite.clone().zip(self.offered.clone()) else {
            return;
        };
        self.phase = Phase::Up;
        self.record.answered = Some(now);
        self.accept(&invite, &offer, now, out);
    }

    /// Offers the same again, as a phone does from time to time to see whether the other end is there.
    pub fn reinvite(&mut self, now: Duration, out: &mut Out) {
        if self.phase != Phase::Up || self.record.changing.is_some() {
            return;
        }
        self.record.changing = Some(now);
        self.session.version += 1;
        let invite = self.offer();
        self.send(invite, now, out);
    }

    /// Wants no answer any more. Only after a provisional one: before, it would overtake its INVITE (section 9.1).
    pub fn cancel(&mut self, now: Duration, out: &mut Out) {
        let Some(invite) = self
            .invite
            .clone()
            .filter(|_| self.phase == Phase::Calling && self.record.ringing.is_some())
        else {
            return;
        };
        self.phase = Phase::Cancelling;
        self.record.cancelling = Some(now);
        for client in &mut self.clients {
            client.end_by(now + PATIENCE);
        }
        self.send(companion(&invite, Method::Cancel, None), now, out);
    }

    /// Hangs up.
    pub fn hang_up(&mut self, now: Duration, out: &mut Out) {
        if self.phase != Phase::Up || self.record.ending.is_some() {
            return;
        }
        self.record.ending = Some(now);
        let bye = self.dialog.request(Method::Bye);
        self.send(bye, now, out);
    }

    /// The connection is gone.
    pub fn connection_lost(&mut self, out: &mut Out) {
        self.clients.clear();
        self.repeated = None;
        if self.phase != Phase::Over {
            self.phase = Phase::Over;
            self.fail(Failure::ConnectionLost, out);
        }
    }

    /// Takes a message of this call.
    pub fn receive(&mut self, now: Duration, message: &Message, out: &mut Out) {
        match (message.method(), message.code()) {
            (Some(method), _) => self.asked(now, &method.clone(), message, out),
            (_, Some(code)) => self.told(now, code, message, out),
            _ => {}
        }
    }

    /// When [`Self::tick`] has something to do.
    pub fn deadline(&self) -> Option<Duration> {
        let clients = self.clients.iter().filter_map(Client::deadline);
        let repeated = self.repeated.as_ref().map(Repeated::deadline);
        clients.chain(repeated).min()
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Duration, out: &mut Out) {
        let mut late = Vec::new();
        self.clients.retain_mut(|client| match client.fire(now) {
            Fired::Nothing => true,
            Fired::Again => {
                self.record.resent += 1;
                out.messages.push(client.request.clone());
                true
            }
            Fired::TimedOut => {
                late.push(client.method().clone());
                false
            }
        });
        for method in late {
            self.phase = Phase::Over;
            self.fail(Failure::TimedOut(method), out);
        }
        self.repeat(now, out);
    }

    /// An INVITE with this end's description.
    fn offer(&mut self) -> Message {
        let mut invite = self.dialog.request(Method::Invite);
        invite.add("Content-Type", Session::TYPE);
        invite.body = self.session.encode();
        invite
    }

    fn send(&mut self, request: Message, now: Duration, out: &mut Out) {
        let transport = self.dialog.identity.transport;
        self.clients
            .extend(Client::new(request.clone(), now, transport));
        out.messages.push(request);
    }

    fn fail(&mut self, failure: Failure, out: &mut Out) {
        self.record.failure.get_or_insert(failure.clone());
        out.events.push(Event::Failed(failure));
    }

    fn end(&mut self, now: Duration, event: Event, out: &mut Out) {
        if self.phase != Phase::Over {
            self.phase = Phase::Over;
            self.record.ended = Some(now);
            out.events.push(event);
        }
    }
}
