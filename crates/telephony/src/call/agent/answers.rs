//! What the other end asks: server transactions (RFC 3261, section 17.2), and answers that are sent until they are
//! acknowledged (section 13.3.1.4).

use super::{
    Agent, Duration, Event, Failure, Message, Method, Out, PATIENCE, Phase, Session, T1, T2,
};

/// Answers that are kept for requests that come again. A call has no more requests than that.
const KEPT: usize = 16;

/// A final answer to INVITE that waits for its ACK (timers G and H).
#[derive(Debug)]
pub(super) struct Repeated {
    answer: Message,
    /// The INVITE's number: its ACK has it, too.
    number: u32,
    next: Option<(Duration, Duration)>,
    ends: Duration,
    /// Whether it is the answer to the call itself.
    first: bool,
}

impl Repeated {
    pub(super) fn deadline(&self) -> Duration {
        self.next.map_or(self.ends, |(at, _)| at.min(self.ends))
    }
}

impl Agent {
    /// Takes a request.
    pub(super) fn asked(
        &mut self,
        now: Duration,
        method: &Method,
        request: &Message,
        out: &mut Out,
    ) {
        if *method == Method::Ack {
            self.acknowledged(now, request, out);
            return;
        }
        let branch = request.via().and_then(|via| via.branch());
        let before = self
            .replies
            .iter()
            .rev()
            .find(|(own, of, _)| Some(own.as_str()) == branch && of == method);
        if let Some((_, _, reply)) = before {
            out.messages.push(reply.clone());
            return;
        }
        let number = request.cseq().map(|cseq| cseq.number);
        if *method == Method::Cancel {
            self.cancelled(now, request, out);
            return;
        }
        if number < self.dialog.remote_sequence {
            let late = self.dialog.answer(request, 500, "Out Of Order");
            self.reply(late, out);
            return;
        }
        self.dialog.remote_sequence = number;
        match method {
            Method::Bye => {
                let ok = self.dialog.answer(request, 200, "OK");
                self.reply(ok, out);
                self.record.ending.get_or_insert(now);
                self.repeated = None;
                self.end(now, Event::Ended, out);
            }
            Method::Invite if self.phase == Phase::Up => {
                self.dialog.refresh(request);
                let offer = Session::parse(&request.body);
                let offer = offer.filter(|offer| self.session.answer(offer).is_some());
                if let Some(offer) = offer {
                    self.session.version += 1;
                    self.accept(request, &offer, now, out);
                } else {
                    let refusal = self.dialog.answer(request, 488, "Not Acceptable Here");
                    self.answer_finally(refusal, now, out);
                }
            }
            Method::Options => {
                let ok = self.dialog.answer(request, 200, "OK");
                self.reply(ok, out);
            }
            Method::Invite => {
                let gone = self
                    .dialog
                    .answer(request, 481, "Call/Transaction Does Not Exist");
                self.answer_finally(gone, now, out);
            }
            _ => {
                let mut unknown = self.dialog.answer(request, 405, "Method Not Allowed");
                unknown.add("Allow", "INVITE, ACK, CANCEL, BYE, OPTIONS");
                self.reply(unknown, out);
            }
        }
    }

    fn cancelled(&mut self, now: Duration, request: &Message, out: &mut Out) {
        let ours = self.invite.as_ref().filter(|invite| {
            let branch = |m: &Message| m.via().and_then(|via| via.branch().map(str::to_owned));
            branch(invite) == branch(request)
        });
        let Some(invite) = ours.cloned() else {
            let unknown = self
                .dialog
                .answer(request, 481, "Call/Transaction Does Not Exist");
            self.reply(unknown, out);
            return;
        };
        let ok = self.dialog.answer(request, 200, "OK");
        self.reply(ok, out);
        // After an answer it changes nothing (section 9.2).
        if self.phase == Phase::Ringing {
            self.record.cancelling = Some(now);
            let terminated = self.dialog.answer(&invite, 487, "Request Terminated");
            self.answer_finally(terminated, now, out);
            self.end(now, Event::Cancelled, out);
        }
    }

    /// Answers an INVITE with 200 and this end's description.
    pub(super) fn accept(
        &mut self,
        invite: &Message,
        offer: &Session,
        now: Duration,
        out: &mut Out,
    ) {
        let mut ok = self.dialog.answer(invite, 200, "OK");
        ok.add("Content-Type", Session::TYPE);
        // What cannot be answered was refused before.
        ok.body = self
            .session
            .answer(offer)
            .unwrap_or_else(|| self.session.clone())
            .encode();
        self.answer_finally(ok, now, out);
    }

    /// Sends a final answer to INVITE, and sends it again until its ACK comes. A 2xx also over a connection, for it goes from end
    /// to end.
    pub(super) fn answer_finally(&mut self, answer: Message, now: Duration, out: &mut Out) {
        let success = answer.code().is_some_and(|code| code < 300);
        let again = success || !self.dialog.identity.transport.is_reliable();
        self.repeated = Some(Repeated {
            number: answer.cseq().map_or(0, |cseq| cseq.number),
            next: again.then_some((now + T1, T1)),
            ends: now + PATIENCE,
            first: success && self.record.confirmed.is_none(),
            answer: answer.clone(),
        });
        self.reply(answer, out);
    }

    pub(super) fn repeat(&mut self, now: Duration, out: &mut Out) {
        let Some(repeated) = &mut self.repeated else {
            return;
        };
        if now >= repeated.ends {
            self.repeated = None;
            self.phase = Phase::Over;
            self.fail(Failure::NoAck, out);
        } else if let Some((at, interval)) = &mut repeated.next
            && now >= *at
        {
            *interval = (*interval * 2).min(T2);
            *at = now + *interval;
            self.record.resent += 1;
            out.messages.push(repeated.answer.clone());
        }
    }

    fn acknowledged(&mut self, now: Duration, ack: &Message, out: &mut Out) {
        let number = ack.cseq().map(|cseq| cseq.number);
        let Some(repeated) = self.repeated.take_if(|own| Some(own.number) == number) else {
            return;
        };
        if repeated.first {
            self.record.confirmed = Some(now);
            if let Some(offer) = self.offered.take() {
                out.events.push(Event::Up(offer));
            }
        }
    }

    /// Sends an answer and keeps it, in the place of an earlier one to the same request.
    pub(super) fn reply(&mut self, answer: Message, out: &mut Out) {
        let branch = answer.via().and_then(|via| via.branch().map(str::to_owned));
        if let Some((branch, cseq)) = branch.zip(answer.cseq()) {
            self.replies
                .retain(|(own, method, _)| *own != branch || *method != cseq.method);
            if self.replies.len() == KEPT {
                self.replies.remove(0);
            }
            self.replies.push((branch, cseq.method, answer.clone()));
        }
        out.messages.push(answer);
    }
}
