//! Nothing of an epoch is applied before all of it was verified.

mod common;

use common::Ram;
use romulus_checkpoint::{Encoder, PAGE, Pages as _, Replica, Staging};
use std::convert::Infallible;

#[test]
fn what_was_not_verified_is_not_applied() {
    let (ours, theirs) = (Ram::new(4), Ram::new(4));
    ours.write(1, &[7; PAGE]);
    let mut staging = Staging::new(4);
    staging.copy(&ours, 0..4);
    let mut parts = Vec::new();
    let sealed = Encoder::new(4, 1 << 20)
        .encode(&staging, &mut |_, part| {
            parts.push(part.to_vec());
            Ok::<_, Infallible>(())
        })
        .unwrap();
    let mut replica = Replica::new(4, 1 << 20);
    assert_eq!(replica.apply(&theirs), None);
    for (index, part) in (0..).zip(&parts) {
        replica.part(1, index, part).unwrap();
        assert_eq!(replica.apply(&theirs), None);
    }
    assert!(theirs == Ram::new(4));
    replica.verify(1, sealed.parts, sealed.digest).unwrap();
    assert_eq!(replica.apply(&theirs), Some(1));
    assert!(theirs == ours);
}
