//! The real directory does what the store asks of it.

use crate::{arbiter::store::Store, sidecar::synced::syncs};
use romulus_protocol::{
    id::{Incarnation, MachineId},
    record::Record,
};

#[test]
fn a_record_is_synced_before_it_has_its_name_and_its_name_after() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().canonicalize().unwrap();
    let (mut store, _) = Store::open(&path).unwrap();
    let record = Record::new(MachineId(7), Incarnation::new(9).unwrap());
    let Some(seen) = syncs(|| store.store(&record).unwrap()) else {
        return;
    };
    let draft = path.join(format!("{}.draft", MachineId(7)));
    assert_eq!(seen, [draft, path]);
}
