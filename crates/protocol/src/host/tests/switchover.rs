//! Switchovers, step by step.

use super::*;

fn yields(actions: &[Action]) -> bool {
    actions.iter().any(|a| {
        matches!(
            a,
            Action::Send {
                message: Message::Yield(_),
                ..
            }
        )
    })
}

fn stays(actions: &[Action]) -> Option<Stays> {
    actions.iter().find_map(|a| match a {
        Action::Notice(Notice::Stays(why)) => Some(*why),
        _ => None,
    })
}

/// For how long both hosts live and nothing else happens.
fn calm(bench: &mut Bench, time: Duration) -> Vec<Action> {
    let end = bench.now + time;
    let mut actions = Vec::new();
    while bench.now < end {
        actions.extend(bench.pass(8 * MS));
        actions.extend(bench.beat(Activity::Backup));
    }
    actions
}

/// A runner whose guest rests, in epoch 3.
fn resting() -> Bench {
    let mut bench = Bench::protected();
    let begun = bench.give(Event::Switchover);
    assert!(begun.contains(&Action::Rest) && stays(&begun).is_none());
    bench.seal_and(true, true);
    assert!(!bench.host.may_seal(session()), "the guest rests");
    bench
}

#[test]
fn the_runner_yields_when_the_epoch_is_committed_in_which_its_guest_rests() {
    let mut bench = resting();
    let passes = |b: &Bench, epoch| b.host.permit().allows(b.now, Epoch(epoch), false);
    assert!(!passes(&bench, 3));
    assert!(!yields(&bench.link(Message::Commit(session(), Epoch(2)))));
    let yielded = bench.link(Message::Commit(session(), Epoch(3)));
    let at = |wanted: &dyn Fn(&Action) -> bool| yielded.iter().position(wanted);
    let released = at(&|a| matches!(a, Action::Permit(p) if p.through == Epoch(3)));
    let frozen = at(&|a| *a == Action::Freeze);
    let said = at(&|a| yields(std::slice::from_ref(a)));
    assert!(
        released.is_some() && released < frozen && frozen < said,
        "{yielded:?}"
    );
    assert!(!passes(&bench, 3));
    assert_eq!(changes(&yielded), [], "the heir claims");
    // It does, and runs: what is here is stale.
    bench.answer(Some(record(5, 2, Some(1), Phase::Claimed)));
    let lost = bench.answer(Some(record(6, 2, None, Phase::Running)));
    assert!(lost.contains(&Action::Discard));
    assert_eq!(stays(&lost), None);
}

#[test]
fn a_guest_whose_rest_leads_nowhere_goes_on_in_the_same_term() {
    let mut bench = resting();
    let given_up = calm(&mut bench, 208 * MS);
    assert!(given_up.contains(&Action::Thaw) && !runs(&given_up));
    assert_eq!(stays(&given_up), Some(Stays::NoCommit));
    let late = bench.link(Message::Commit(session(), Epoch(3)));
    assert!(!yields(&late) && bench.host.may_seal(session()));
    // So does one whose session ends.
    let mut bench = resting();
    let closed = bench.give(Event::Closed(incarnation(2)));
    assert!(closed.contains(&Action::Thaw));
    // Or that is to be stopped.
    let mut bench = resting();
    let stopped = bench.give(Event::Stop);
    assert!(stopped.contains(&Action::Thaw));
}

#[test]
fn what_nobody_takes_is_claimed_back() {
    let mut bench = resting();
    bench.link(Message::Commit(session(), Epoch(3)));
    let early = calm(&mut bench, 192 * MS);
    assert_eq!(changes(&early), []);
    let claim = calm(&mut bench, 16 * MS);
    assert_eq!(changes(&claim)[0], (Some(2), Phase::Claimed));
    bench.answer(Some(record(5, 1, Some(2), Phase::Claimed)));
    let back = bench.answer(Some(record(6, 1, None, Phase::Running)));
    let at = |wanted: &dyn Fn(&Action) -> bool| back.iter().position(wanted);
    let ended = at(&|a| *a == Action::EndCopy(session()));
    let run = at(&|a| matches!(a, Action::Run { .. }));
    assert!(ended.is_some() && ended < run, "{back:?}");
    assert_eq!(stays(&back), Some(Stays::NotTaken));
}

#[test]
fn an_epoch_whose_session_or_term_ended_in_its_pause_is_owed_to_nobody() {
    let next = SessionId {
        number: 2,
        ..session()
    };
    // The session ends, and the next is already copying.
    let copying = || {
        let mut bench = Bench::protected();
        let late = bench.sealed(true, false);
        bench.give(Event::Closed(incarnation(2)));
        bench.answer(Some(record(5, 1, None, Phase::Running)));
        bench.give(Event::Connected(incarnation(2)));
        for _ in 0..50 {
            bench.beat(Activity::Waiting);
            bench.pass(8 * MS);
        }
        bench.link(Message::Ready(next));
        (bench, late)
    };
    let sends = |actions: &[Action]| {
        let checkpoint = |a: &Action| {
            matches!(
                a,
                Action::Send {
                    message: Message::Checkpoint(_),
                    ..
                }
            )
        };
        actions.iter().any(checkpoint)
    };
    let (mut bench, late) = copying();
    assert!(bench.host.may_seal(next) && !bench.host.may_seal(session()));
    assert!(!sends(&bench.give(Event::Sealed(late))));
    assert!(bench.host.may_seal(next), "it waits for no answer");
    assert_eq!(bench.host.status().epoch, Epoch(4), "and has its number");
    let own = Sealed {
        session: next,
        ..late
    };
    assert!(sends(&bench.give(Event::Sealed(own))));
    // The term ends: what runs in the next is its first epoch.
    let mut bench = Bench::protected();
    let late = bench.sealed(true, false);
    let next = *bench.host.seat.view().expect("it runs the machine");
    let claimed = Record {
        generation: Generation(5),
        phase: Phase::Claimed,
        ..next
    };
    bench.answer(Some(claimed));
    let running = Record {
        generation: Generation(6),
        heir: None,
        phase: Phase::Running,
        ..next
    };
    assert!(runs(&bench.answer(Some(running))));
    bench.give(Event::Sealed(late));
    assert_eq!(bench.host.status().epoch, Epoch(1));
}

#[test]
fn an_heir_that_is_yielded_to_claims_without_waiting_for_silence() {
    let session = |number| SessionId {
        runner: incarnation(2),
        number,
    };
    let mut bench = Bench::heir();
    let other = bench.link(Message::Yield(session(2)));
    assert_eq!(changes(&other), [], "of another session");
    let own = bench.link(Message::Yield(session(1)));
    assert!(own.contains(&Action::Freeze));
    assert_eq!(changes(&own), [(Some(2), Phase::Claimed)]);
    // One that does not know yet that it is heir waits until it does.
    let mut bench = Bench::new(1, Sidecar::empty(MACHINE));
    bench.answer(Some(record(3, 2, None, Phase::Running)));
    bench.fill();
    assert_eq!(changes(&bench.link(Message::Yield(session(1)))), []);
    bench.answer(Some(record(4, 2, Some(1), Phase::Running)));
    assert_eq!(changes(&bench.pass(8 * MS)), [(Some(2), Phase::Claimed)]);
}

#[test]
fn only_a_protected_machine_that_runs_here_is_handed_over() {
    let mut bench = Bench::new(1, Sidecar::empty(MACHINE));
    assert_eq!(stays(&bench.give(Event::Switchover)), Some(Stays::NotHere));
    let mut bench = Bench::protected();
    bench.pass(72 * MS);
    // Not heard of for longer than T_a, but not yet claimed against.
    bench.now = bench.now + 16 * MS;
    assert_eq!(
        stays(&bench.give(Event::Switchover)),
        Some(Stays::NotProtected)
    );
    let mut bench = Bench::protected();
    bench.give(Event::Stop);
    assert_eq!(stays(&bench.give(Event::Switchover)), Some(Stays::Ends));
    let mut bench = resting();
    let again = bench.give(Event::Switchover);
    assert_eq!(again, [], "one is on its way");
}

const GONE: Uplink = Uplink { up: 0, of: 1 };
const THERE: Uplink = Uplink { up: 1, of: 1 };

fn switches(actions: &[Action]) -> bool {
    actions.contains(&Action::Notice(Notice::SwitchesOver(Switch::Uplink)))
}

/// A machine that has run here for longer than `t_hold`; the other host's uplink is this.
fn settled(there: Uplink) -> Bench {
    let mut bench = Bench::protected();
    bench.partner_uplink = there;
    bench.give(Event::Uplink(THERE));
    let quiet = calm(&mut bench, Timing::default().t_hold);
    assert!(!switches(&quiet));
    bench
}

#[test]
fn a_gone_uplink_moves_the_machine_where_it_is_there() {
    let mut bench = settled(THERE);
    bench.give(Event::Uplink(GONE));
    assert!(
        !switches(&calm(&mut bench, 184 * MS)),
        "not before t_uplink"
    );
    let moved = calm(&mut bench, 32 * MS);
    assert!(switches(&moved) && moved.contains(&Action::Rest));
    assert_eq!(bench.host.status().uplink, GONE);
    assert_eq!(bench.host.status().partner_uplink, Some(THERE));
}

#[test]
fn a_gone_uplink_moves_nothing_where_that_helps_nobody() {
    for there in [GONE, Uplink::default()] {
        let mut bench = settled(there);
        bench.give(Event::Uplink(GONE));
        assert!(
            !switches(&calm(&mut bench, Duration::from_secs(1))),
            "{there:?}"
        );
        // There again on the other side.
        bench.partner_uplink = THERE;
        assert!(switches(&calm(&mut bench, 224 * MS)));
    }
    let mut bench = settled(THERE);
    bench.give(Event::Uplink(GONE));
    calm(&mut bench, 100 * MS);
    bench.give(Event::Uplink(THERE));
    assert!(
        !switches(&calm(&mut bench, Duration::from_secs(1))),
        "a blink"
    );
}

#[test]
fn of_several_uplinks_the_other_side_must_have_more() {
    let of_two = |up| Uplink { up, of: 2 };
    let mut bench = settled(of_two(1));
    bench.give(Event::Uplink(of_two(1)));
    assert!(!switches(&calm(&mut bench, Duration::from_secs(1))));
    bench.give(Event::Uplink(of_two(0)));
    assert!(switches(&calm(&mut bench, 224 * MS)));
}

#[test]
fn a_machine_is_not_moved_again_within_t_hold() {
    let mut bench = Bench::protected();
    bench.partner_uplink = THERE;
    bench.give(Event::Uplink(GONE));
    let hold = Timing::default().t_hold;
    let early = calm(&mut bench, hold.checked_sub(100 * MS).expect("longer"));
    assert!(!switches(&early), "the term has only just begun");
    let tried = calm(&mut bench, 100 * MS);
    assert!(switches(&tried));
    // That comes to nothing: tried again after as long.
    assert!(calm(&mut bench, 400 * MS).contains(&Action::Thaw));
    let early = calm(&mut bench, hold.checked_sub(500 * MS).expect("longer"));
    assert!(!switches(&early));
    assert!(switches(&calm(&mut bench, 208 * MS)));
}
