//! What the other end answers.

use super::{Agent, Duration, Event, Failure, Message, Method, Out, Phase, Session, companion};

impl Agent {
    /// Takes an answer.
    pub(super) fn told(&mut self, now: Duration, code: u16, answer: &Message, out: &mut Out) {
        let Some(at) = self
            .clients
            .iter()
            .position(|client| client.matches(answer))
        else {
            self.told_again(code, answer, out);
            return;
        };
        if code < 200 {
            self.clients[at].provisional(now);
            let rings = (180..=183).contains(&code) && self.phase == Phase::Calling;
            if rings && self.record.ringing.is_none() {
                self.record.ringing = Some(now);
                out.events.push(Event::Ringing);
            }
            return;
        }
        let client = self.clients.remove(at);
        let method = client.method().clone();
        if method == Method::Invite {
            let first = matches!(self.phase, Phase::Calling | Phase::Cancelling);
            let success = code < 300;
            let usable = !success || !first || self.dialog.establish(answer);
            let ack = if success {
                self.dialog.refresh(answer);
                self.dialog.ack(&client.request)
            } else {
                companion(&client.request, Method::Ack, Some(answer))
            };
            out.messages.push(ack.clone());
            self.acks.push((client.branch().to_owned(), ack));
            match (success, first) {
                (true, true) => self.came_up(now, usable, answer, out),
                (true, false) => self.has_changed(now, answer, out),
                (false, true) => {
                    // What was cancelled is answered so.
                    if code == 487 && self.phase == Phase::Cancelling {
                        self.end(now, Event::Cancelled, out);
                    } else {
                        self.phase = Phase::Over;
                        self.fail(Failure::Refused(method, code), out);
                    }
                }
                // The call goes on as it was (section 14.1).
                (false, false) => self.fail(Failure::Refused(method, code), out),
            }
        } else if method == Method::Bye {
            if code < 300 {
                self.end(now, Event::Ended, out);
            } else {
                self.phase = Phase::Over;
                self.fail(Failure::Refused(method, code), out);
            }
        } else if code >= 300 {
            self.fail(Failure::Refused(method, code), out);
        }
    }

    fn came_up(&mut self, now: Duration, usable: bool, answer: &Message, out: &mut Out) {
        self.record.answered = Some(now);
        self.record.confirmed = Some(now);
        let session = Session::parse(&answer.body).filter(|_| usable);
        let Some(session) = session.filter(|other| self.session.answer(other).is_some()) else {
            self.phase = Phase::Over;
            self.fail(Failure::Incompatible, out);
            return;
        };
        let too_late = self.phase == Phase::Cancelling;
        self.phase = Phase::Up;
        if too_late {
            // The answer crossed the CANCEL.
            self.hang_up(now, out);
        } else {
            out.events.push(Event::Up(session));
        }
    }

    fn has_changed(&mut self, now: Duration, answer: &Message, out: &mut Out) {
        match Session::parse(&answer.body) {
            Some(session) => {
                self.record.changed = Some(now);
                out.events.push(Event::Changed(session));
            }
            None => self.fail(Failure::Incompatible, out),
        }
    }

    /// An answer that came before: of an INVITE it asks for its ACK again.
    fn told_again(&mut self, code: u16, answer: &Message, out: &mut Out) {
        let invite = answer
            .cseq()
            .is_some_and(|cseq| cseq.method == Method::Invite);
        let Some(via) = answer.via().filter(|_| invite && code >= 200) else {
            return;
        };
        let ack = self
            .acks
            .iter()
            .find(|(branch, _)| via.branch() == Some(branch));
        if let Some((_, ack)) = ack {
            out.messages.push(ack.clone());
        }
    }
}
