//! Single steps of a host. What many steps lead to is the simulator's business.

mod silence;
mod switchover;

use super::*;
use crate::arbiter::Answer;
use crate::id::{MachineId, SessionId};
use crate::message::{Checkpoint, Message};
use crate::sidecar::DiskState;
use crate::timing::Timing;
use std::time::Duration;

const MACHINE: MachineId = MachineId(5);
const MS: Duration = Duration::from_millis(1);

fn incarnation(n: u128) -> Incarnation {
    Incarnation::new(n).expect("not zero")
}

fn record(generation: u64, runner: u128, heir: Option<u128>, phase: Phase) -> Record {
    Record {
        machine: MACHINE,
        generation: Generation(generation),
        runner: incarnation(runner),
        heir: heir.map(incarnation),
        phase,
    }
}

/// The session in which the heir of [`Bench::protected`] is filled.
fn session() -> SessionId {
    SessionId {
        runner: incarnation(1),
        number: 1,
    }
}

/// A host and what it has said.
struct Bench {
    host: Host,
    now: Time,
    /// What the other host's heartbeats say of its uplinks.
    partner_uplink: Uplink,
}

impl Bench {
    fn new(me: u128, sidecar: Sidecar) -> Bench {
        Bench::with(me, sidecar, true)
    }

    fn with(me: u128, sidecar: Sidecar, preferred: bool) -> Bench {
        let config = Config {
            machine: MACHINE,
            unheld: false,
            preferred,
            timing: Timing::default(),
        };
        let now = Time(1 << 40);
        let host = Host::new(config, incarnation(me), sidecar, now).expect("safe time-outs");
        Bench {
            host,
            now,
            partner_uplink: Uplink::default(),
        }
    }

    fn actions(&mut self) -> Vec<Action> {
        std::iter::from_fn(|| self.host.poll()).collect()
    }

    fn give(&mut self, event: Event) -> Vec<Action> {
        self.host.handle(self.now, event);
        self.actions()
    }

    fn answer(&mut self, record: Option<Record>) -> Vec<Action> {
        let to = self.host.me;
        let answer = Answer {
            machine: MACHINE,
            to,
            number: u64::MAX,
            record,
            refusal: None,
        };
        self.give(Event::Arbiter(answer))
    }

    /// Lets time pass, with all threads on time, and gathers what is done meanwhile.
    fn pass(&mut self, time: Duration) -> Vec<Action> {
        let end = self.now + time;
        let mut actions = Vec::new();
        while self.now < end {
            self.now = self.now + 8 * MS;
            actions.extend(self.give(Event::LoopTurned));
            actions.extend(self.give(Event::Tick { drained: true }));
        }
        actions
    }

    /// A primary with an heir, 2, in session 1 of term 3.
    fn protected() -> Bench {
        let mut bench = Bench::new(1, Sidecar::of(MACHINE, incarnation(1)));
        bench.host.seat.learn(
            bench.now,
            &Answer {
                machine: MACHINE,
                to: incarnation(1),
                number: 1,
                record: Some(record(3, 1, None, Phase::Running)),
                refusal: None,
            },
        );
        let record = *bench.host.seat.view().expect("just learned");
        bench.host.launch(bench.now, &record, Source::Cold);
        let heir = incarnation(2);
        bench.give(Event::Connected(heir));
        bench.beat(Activity::Waiting);
        let actions = bench.pass(8 * MS);
        let begin = actions.iter().find_map(|a| match a {
            Action::Send {
                message: Message::Begin { session, .. },
                ..
            } => Some(*session),
            _ => None,
        });
        let session = begin.expect("a session is offered");
        bench.link(Message::Ready(session));
        bench.seal(true);
        bench.link(Message::Commit(session, Epoch(1)));
        bench.link(Message::Tried(session));
        bench.beat(Activity::Backup);
        bench.pass(8 * MS);
        bench.seal(true);
        let asked = bench.link(Message::Commit(session, Epoch(2)));
        assert_eq!(
            changes(&asked),
            [(Some(2), Phase::Running)],
            "named once all is covered"
        );
        bench.answer(Some(self::record(4, 1, Some(2), Phase::Running)));
        bench.beat(Activity::Backup);
        assert!(bench.host.status().protected_since.is_some());
        bench
    }

    /// A backup that is filled in session 1 of runner 2, up to epoch 5.
    fn fill(&mut self) {
        let session = SessionId {
            runner: incarnation(2),
            number: 1,
        };
        let (term, generation) = (Term(Generation(3)), Generation(3));
        self.link(Message::Begin {
            session,
            term,
            generation,
            unheld: false,
        });
        self.give(Event::SidecarStored(true));
        self.link(Message::Checkpoint(Checkpoint {
            session,
            term,
            epoch: Epoch(5),
            complete: true,
            released_through: Epoch(0),
            rx_next: 0,
            parts: 0,
            digest: 0,
        }));
        self.give(Event::SidecarStored(true));
        assert!(self.host.status().whole);
    }

    /// The heir of 2, with a whole replica.
    fn heir() -> Bench {
        let mut bench = Bench::new(1, Sidecar::empty(MACHINE));
        bench.answer(Some(record(3, 2, None, Phase::Running)));
        bench.fill();
        bench.answer(Some(record(4, 2, Some(1), Phase::Running)));
        bench
    }

    fn link(&mut self, message: Message) -> Vec<Action> {
        self.give(Event::Message {
            from: incarnation(2),
            message,
        })
    }

    fn seal(&mut self, complete: bool) -> Vec<Action> {
        self.seal_and(complete, false)
    }

    fn seal_and(&mut self, complete: bool, rests: bool) -> Vec<Action> {
        let sealed = self.sealed(complete, rests);
        self.give(Event::Sealed(sealed))
    }

    /// What is said at the end of an epoch that may end now.
    fn sealed(&self, complete: bool, rests: bool) -> Sealed {
        assert!(self.host.may_seal(session()));
        Sealed {
            term: Term(Generation(3)),
            session: session(),
            complete,
            released_through: Epoch(0),
            rx_next: 0,
            rests,
        }
    }

    /// A heartbeat of 2 that has just echoed ours.
    fn beat(&mut self, activity: Activity) -> Vec<Action> {
        self.beat_on(activity, Lane::Link)
    }

    fn beat_on(&mut self, activity: Activity, lane: Lane) -> Vec<Action> {
        self.beat_from(activity, lane, self.now)
    }

    /// One that is read now and arrived earlier.
    fn beat_from(&mut self, activity: Activity, lane: Lane, arrived: Time) -> Vec<Action> {
        let echo = crate::heartbeat::Echo {
            of: self.host.me,
            sent: arrived,
        };
        let beat = Heartbeat {
            machine: MACHINE,
            from: incarnation(2),
            sent: self.now,
            moves: true,
            activity,
            whole: activity == Activity::Backup,
            uplink: self.partner_uplink,
            generation: Generation(1),
            echoes: vec![echo],
        };
        self.give(Event::Heartbeat {
            beat,
            lane,
            arrived,
        })
    }
}

/// The changes asked of the arbiter: heir and phase.
fn changes(actions: &[Action]) -> Vec<(Option<u128>, Phase)> {
    let change = |a: &Action| match a {
        Action::Arbiter(request) => match &request.ask {
            Ask::Change(_, change) => Some((change.heir.map(Incarnation::get), change.phase)),
            _ => None,
        },
        _ => None,
    };
    actions.iter().filter_map(change).collect()
}

fn runs(actions: &[Action]) -> bool {
    actions.iter().any(|a| matches!(a, Action::Run { .. }))
}

#[test]
fn a_new_machine_starts_from_its_disk_in_two_steps() {
    let mut bench = Bench::new(1, Sidecar::of(MACHINE, incarnation(9)));
    bench.answer(Some(Record::new(MACHINE, incarnation(9))));
    let stored = bench.pass(8 * MS);
    let expected = Sidecar::of(MACHINE, incarnation(9)).with(incarnation(1));
    assert!(stored.contains(&Action::StoreSidecar(expected)));
    assert_eq!(
        changes(&stored),
        [],
        "the claim waits until the sidecar is durable"
    );
    let claim = bench.give(Event::SidecarStored(true));
    assert_eq!(changes(&claim), [(None, Phase::Claimed)]);
    let won = bench.answer(Some(record(2, 1, None, Phase::Claimed)));
    assert!(won.contains(&Action::Load(Source::Cold)) && !runs(&won));
    let loaded = bench.give(Event::Loaded(true));
    assert_eq!(changes(&loaded), [(None, Phase::Running)]);
    assert!(!runs(&loaded));
    assert!(runs(&bench.answer(Some(record(
        3,
        1,
        None,
        Phase::Running
    )))));
}

#[test]
fn a_machine_that_was_loaded_for_a_claim_is_dropped_when_another_host_has_it() {
    let sidecar = Sidecar::of(MACHINE, incarnation(9)).with(incarnation(1));
    for loaded in [None, Some(true), Some(false)] {
        let mut bench = Bench::new(1, sidecar.clone());
        let loads = bench.answer(Some(record(2, 1, Some(2), Phase::Claimed)));
        assert!(loads.contains(&Action::Load(Source::Cold)), "{loads:?}");
        if let Some(ok) = loaded {
            bench.give(Event::Loaded(ok));
        }
        let taken = bench.answer(Some(record(3, 2, Some(1), Phase::Claimed)));
        assert!(taken.contains(&Action::Discard), "{taken:?}");
        // Once is enough, and what still comes of it is nobody's.
        let runs = bench.answer(Some(record(4, 2, None, Phase::Running)));
        assert!(!runs.contains(&Action::Discard));
        assert_eq!(changes(&bench.give(Event::Loaded(true))), []);
    }
}

/// How long a host waits before it makes ready to claim a machine that `record` describes.
fn patience(record: Record, preferred: bool) -> Duration {
    let disk = Sidecar::of(MACHINE, incarnation(9));
    let mut bench = Bench::with(1, disk, preferred);
    let begun = bench.now;
    let mut actions = bench.answer(Some(record));
    while !actions.iter().any(|a| matches!(a, Action::StoreSidecar(_))) {
        assert!(bench.now.since(begun) < Duration::from_mins(1));
        actions = bench.pass(8 * MS);
    }
    bench.now.since(begun)
}

#[test]
fn only_the_preferred_host_and_a_machine_that_never_ran_need_no_silence() {
    let new = Record::new(MACHINE, incarnation(9));
    let old = record(2, 9, None, Phase::Claimed);
    let about = |time: Duration, wanted: u32| time.abs_diff(wanted * MS) <= 16 * MS;
    assert!(about(patience(new, true), 0));
    assert!(about(patience(new, false), 4500), "the other goes first");
    assert!(about(patience(old, true), 3000), "T_cold");
    assert!(about(patience(old, false), 4500));
}

#[test]
fn reading_never_permits() {
    // The record says that this incarnation runs, but it never asked for that.
    let mut bench = Bench::new(1, Sidecar::of(MACHINE, incarnation(1)));
    assert!(!runs(&bench.answer(Some(record(
        7,
        1,
        None,
        Phase::Running
    )))));
    assert!(!runs(&bench.pass(Duration::from_secs(10))));
}

#[test]
fn a_silent_heir_is_claimed_against_at_t_a_and_nothing_passes_from_t_p() {
    let mut bench = Bench::protected();
    let passes = |b: &Bench| b.host.permit().allows(b.now, Epoch(2), false);
    assert!(passes(&bench));
    let early = bench.pass(72 * MS);
    assert!(!passes(&bench), "T_p is 70 ms");
    assert_eq!(changes(&early), []);
    let claim = bench.pass(16 * MS);
    assert!(claim.contains(&Action::Freeze));
    assert_eq!(
        changes(&claim),
        [(Some(2), Phase::Claimed)],
        "the loser stays heir"
    );
    // Nothing but the record thaws it.
    bench.beat(Activity::Backup);
    assert!(!passes(&bench));
    bench.answer(Some(record(5, 1, Some(2), Phase::Claimed)));
    assert!(!passes(&bench));
    assert!(runs(&bench.answer(Some(record(
        6,
        1,
        None,
        Phase::Running
    )))));
    assert!(passes(&bench));
}

#[test]
fn an_unknown_outcome_is_asked_for_until_the_generation_passes() {
    let mut bench = Bench::protected();
    bench.pass(88 * MS);
    let again = bench.pass(Duration::from_secs(1));
    assert!(changes(&again).len() >= 10, "sent again and again");
    // A read of the old generation settles nothing.
    let still = bench.answer(Some(record(4, 1, Some(2), Phase::Running)));
    assert!(!runs(&still) && bench.host.status().role == RoleName::Frozen);
}

#[test]
fn the_loser_keeps_all_until_the_winner_runs() {
    let mut bench = Bench::protected();
    let claimed = bench.answer(Some(record(5, 2, Some(1), Phase::Claimed)));
    assert!(claimed.contains(&Action::Freeze) && !claimed.contains(&Action::Discard));
    let stale = bench.pass(Timing::default().t_c + 16 * MS);
    assert_eq!(
        changes(&stale)[0],
        (Some(2), Phase::Claimed),
        "a claim that stands too long"
    );
    let lost = bench.answer(Some(record(7, 2, None, Phase::Running)));
    assert!(lost.contains(&Action::Discard));
    assert_eq!(bench.host.status().role, RoleName::Waiting);
}

#[test]
fn a_stopped_guest_leaves_no_heir_behind() {
    let mut bench = Bench::protected();
    let stop = bench.give(Event::Stop);
    assert_eq!(changes(&stop), [(None, Phase::Running)]);
    assert!(
        !stop.contains(&Action::End),
        "not before the heir is let go"
    );
    let end = bench.answer(Some(record(5, 1, None, Phase::Running)));
    let told = Action::Send {
        to: incarnation(2),
        message: Message::Stopped,
    };
    assert!(end.contains(&told) && end.contains(&Action::End));
}

#[test]
fn a_lost_record_is_said_once() {
    let mut bench = Bench::protected();
    let count = |actions: Vec<Action>| {
        let lost = |a: &&Action| matches!(a, Action::Notice(Notice::RecordLost { .. }));
        actions.iter().filter(lost).count()
    };
    assert_eq!(
        count(bench.answer(Some(record(2, 9, None, Phase::Running)))),
        1
    );
    assert_eq!(
        count(bench.answer(Some(record(2, 9, None, Phase::Running)))),
        0
    );
    assert_eq!(count(bench.answer(None)), 1);
    assert_eq!(
        bench.host.status().role,
        RoleName::Primary,
        "and changes nothing"
    );
}

#[test]
fn a_backup_is_filled_whole_then_tried() {
    let mut bench = Bench::new(1, Sidecar::empty(MACHINE));
    bench.answer(Some(record(3, 2, None, Phase::Running)));
    let session = SessionId {
        runner: incarnation(2),
        number: 1,
    };
    let (term, generation) = (Term(Generation(3)), Generation(3));
    let begin = bench.link(Message::Begin {
        session,
        term,
        generation,
        unheld: false,
    });
    assert!(begin.contains(&Action::Prepare(session)));
    let ready = Action::Send {
        to: incarnation(2),
        message: Message::Ready(session),
    };
    assert!(!begin.contains(&ready), "the sidecar says resyncing first");
    assert!(bench.give(Event::SidecarStored(true)).contains(&ready));
    let checkpoint = |epoch, complete| {
        Message::Checkpoint(Checkpoint {
            session,
            term,
            epoch: Epoch(epoch),
            complete,
            released_through: Epoch(0),
            rx_next: 0,
            parts: 0,
            digest: 0,
        })
    };
    let part = bench.link(checkpoint(5, false));
    assert!(part.contains(&Action::Send {
        to: incarnation(2),
        message: Message::Received(session, Epoch(5))
    }));
    let last = bench.link(checkpoint(6, true));
    let commit = Action::Send {
        to: incarnation(2),
        message: Message::Commit(session, Epoch(6)),
    };
    assert!(!last.contains(&commit), "the sidecar says in-sync first");
    assert_eq!(bench.host.sidecar.state, DiskState::Resyncing);
    let whole = bench.give(Event::SidecarStored(true));
    assert!(whole.contains(&commit) && whole.contains(&Action::Try(session)));
    // A gap ends the session, and what is here stays what it was.
    let gap = bench.link(checkpoint(9, true));
    assert!(gap.contains(&Action::Send {
        to: incarnation(2),
        message: Message::Bye(session)
    }));
    assert_eq!(bench.host.status().epoch, Epoch(6));
}

#[test]
fn promotion_needs_something_whole() {
    let mut bench = Bench::new(1, Sidecar::empty(MACHINE));
    bench.answer(Some(record(3, 2, None, Phase::Running)));
    assert!(
        bench
            .give(Event::Promote)
            .contains(&Action::Notice(Notice::CannotPromote))
    );
    let mut bench = Bench::new(1, Sidecar::of(MACHINE, incarnation(8)));
    bench.answer(Some(record(3, 2, None, Phase::Running)));
    bench.give(Event::Promote);
    let claim = bench.give(Event::SidecarStored(true));
    assert_eq!(changes(&claim), [(None, Phase::Claimed)]);
}

#[test]
fn an_arbiter_that_cannot_read_its_record_has_answered_nothing() {
    let mut bench = Bench::protected();
    let damaged = Answer {
        machine: MACHINE,
        to: incarnation(1),
        number: u64::MAX,
        record: None,
        refusal: Some(Refusal::Damaged),
    };
    let mut said = Vec::new();
    for _ in 0..20 {
        bench.beat(Activity::Backup);
        said.extend(bench.pass(200 * MS));
        said.extend(bench.give(Event::Arbiter(damaged)));
    }
    let notices: Vec<_> = said
        .iter()
        .filter(|a| {
            matches!(
                a,
                Action::Notice(
                    Notice::RecordLost { .. } | Notice::Arbiter { .. } | Notice::Refused(_)
                )
            )
        })
        .collect();
    assert_eq!(
        notices,
        [
            &Action::Notice(Notice::Refused(Refusal::Damaged)),
            &Action::Notice(Notice::Arbiter { answers: false })
        ]
    );
}

#[test]
fn a_link_that_carries_nothing_is_given_up_once_while_the_other_host_is_heard() {
    let mut bench = Bench::protected();
    let close = Action::CloseLink(incarnation(2));
    let others = |bench: &mut Bench, time: Duration| {
        let end = bench.now + time;
        let mut actions = Vec::new();
        while bench.now < end {
            actions.extend(bench.pass(8 * MS));
            actions.extend(bench.beat_on(Activity::Backup, Lane::Other));
        }
        actions
    };
    // T_b is 100 ms.
    assert!(!others(&mut bench, 184 * MS).contains(&close));
    let given_up = others(&mut bench, 32 * MS);
    assert_eq!(given_up.iter().filter(|a| **a == close).count(), 1);
    assert!(
        !others(&mut bench, Duration::from_secs(1)).contains(&close),
        "told once"
    );
    // What comes over the link itself is a sign as well.
    let mut bench = Bench::protected();
    let session = SessionId {
        runner: incarnation(1),
        number: 1,
    };
    for _ in 0..5 {
        assert!(!others(&mut bench, 184 * MS).contains(&close));
        bench.link(Message::Commit(session, Epoch(2)));
    }
    // Where nothing is heard at all, the other host is what is watched.
    let mut bench = Bench::protected();
    assert!(!bench.pass(Duration::from_secs(1)).contains(&close));
}
