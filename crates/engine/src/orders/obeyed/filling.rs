//! A session that fills a backup: what its link is told.

use super::*;
use crate::outbox::Item;

/// The guest runs, and this session has begun to fill a backup. What its link would send is in the outbox.
fn filling(bench: &Bench, id: SessionId) -> Arc<Outbox> {
    let backup = incarnation(3);
    let listener = Listener::bind(([127, 0, 0, 1], 0).into()).unwrap();
    let outbox = Arc::new(Outbox::new(listener.closer()));
    bench.node().connected(backup, &outbox);
    bench.node().offers(id, backup);
    bench.run();
    bench.order(Order::Copy(id));
    let opened = told(&outbox, |item| match item {
        Item::Open(stream) => Some(stream.id),
        _ => None,
    });
    assert_eq!(opened, id);
    outbox
}

/// The next of these that the link is told.
fn told<T>(outbox: &Outbox, wanted: impl Fn(Item) -> Option<T>) -> T {
    until("the link is not told", || {
        let item = outbox.take(true).expect("the link is closed");
        item.and_then(&wanted)
    })
}

fn shut(outbox: &Outbox) -> SessionId {
    told(outbox, |item| match item {
        Item::Shut(id) => Some(id),
        _ => None,
    })
}

/// The link lives on: whoever runs the machine now may be at its other end, and what is left of this session would be
/// taken for theirs.
#[test]
fn a_machine_that_is_discarded_ends_what_it_was_sending_and_not_the_link() {
    let Some(bench) = Bench::new(false) else {
        return;
    };
    let outbox = filling(&bench, session(1));
    bench.order(Order::Discard);
    bench.report(is_idle);
    assert_eq!(shut(&outbox), session(1));
}

#[test]
fn a_session_that_ends_ends_what_it_was_sending_and_the_guest_goes_on() {
    let Some(bench) = Bench::new(false) else {
        return;
    };
    let outbox = filling(&bench, session(1));
    bench.order(Order::EndCopy(session(1)));
    assert_eq!(shut(&outbox), session(1));
    bench.goes_on();
}
