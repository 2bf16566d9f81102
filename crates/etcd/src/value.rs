//! A record as the value of a key: text, so that `etcdctl get` shows it, with a checksum, so that
//! nothing that was edited or cut short passes for a record.
//!
//! ```text
//! romulus-record 1
//! machine    01234567-89ab-cdef-0123-456789abcdef
//! generation 5
//! runner     00000000000000000000000000000065
//! heir       none
//! phase      running
//! check      0c8b5b2f
//! ```
//!
//! There is one way to write a record, and what is written in any other is refused.

use romulus_protocol::id::{Generation, Incarnation, MachineId};
use romulus_protocol::record::{Phase, Record};
use thiserror::Error;

const TITLE: &str = "romulus-record 1";
/// Far longer than any record, in bytes.
const LENGTH_MAX: usize = 1024;

/// A value that is not this machine's record.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "the value of the key {key} in etcd is not the record of this machine ({why}). Nobody can take this machine over; others are served. Put back what was there; or stop the machine, remove the key and the `state` directories of both hosts, and `romulus create` it anew"
)]
pub(super) struct Damage {
    /// The key.
    pub(super) key: String,
    /// What is wrong.
    pub(super) why: String,
}

/// The record as text.
pub(super) fn encode(record: &Record) -> String {
    let heir = record
        .heir
        .map_or_else(|| "none".to_owned(), |heir| format!("{:032x}", heir.get()));
    let phase = match record.phase {
        Phase::Claimed => "claimed",
        Phase::Running => "running",
    };
    let text = format!(
        "{TITLE}\nmachine    {}\ngeneration {}\nrunner     {:032x}\nheir       {heir}\nphase      {phase}\n",
        record.machine,
        record.generation,
        record.runner.get(),
    );
    let check = crc32c::crc32c(text.as_bytes());
    format!("{text}check      {check:08x}\n")
}

/// The machine's record that `value` is.
pub(super) fn decode(value: &[u8], machine: MachineId, key: &str) -> Result<Record, Damage> {
    let damage = |why: &str| Damage {
        key: key.to_owned(),
        why: why.to_owned(),
    };
    if value.len() > LENGTH_MAX {
        return Err(damage("it is far too long"));
    }
    let text = std::str::from_utf8(value).map_err(|_| damage("it is not text"))?;
    if text.lines().next() != Some(TITLE) {
        return Err(damage("its first line is another"));
    }
    let record = parse(text).ok_or_else(|| damage("it is damaged"))?;
    if encode(&record) != text {
        return Err(damage("it was changed by hand or damaged"));
    }
    if record.machine != machine {
        let of = record.machine;
        return Err(damage(&format!("it is that of {of}")));
    }
    Ok(record)
}

fn parse(text: &str) -> Option<Record> {
    let mut lines = text.lines().skip(1);
    let mut field = |name: &str| lines.next()?.strip_prefix(name).map(str::trim_start);
    let machine = field("machine ")?.replace('-', "");
    let generation = field("generation ")?;
    let runner = field("runner ")?;
    let heir = field("heir ")?;
    let phase = field("phase ")?;
    let incarnation = |text| Incarnation::new(u128::from_str_radix(text, 16).ok()?);
    Some(Record {
        machine: MachineId(u128::from_str_radix(&machine, 16).ok()?),
        generation: Generation(generation.parse().ok()?),
        runner: incarnation(runner)?,
        heir: match heir {
            "none" => None,
            heir => Some(incarnation(heir)?),
        },
        phase: match phase {
            "claimed" => Phase::Claimed,
            "running" => Phase::Running,
            _ => return None,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KEY: &str = "/romulus/record/x";

    fn record() -> impl Strategy<Value = Record> {
        let incarnation = (1..=u128::MAX).prop_map(|n| Incarnation::new(n).expect("not zero"));
        let heir = proptest::option::of(incarnation.clone());
        let phase = prop_oneof![Just(Phase::Claimed), Just(Phase::Running)];
        (any::<u128>(), any::<u64>(), incarnation, heir, phase).prop_map(
            |(machine, generation, runner, heir, phase)| Record {
                machine: MachineId(machine),
                generation: Generation(generation),
                runner,
                heir,
                phase,
            },
        )
    }

    proptest! {
        #[test]
        fn a_record_is_read_as_it_was_written(record in record()) {
            let text = encode(&record);
            prop_assert!(text.len() <= LENGTH_MAX);
            prop_assert_eq!(decode(text.as_bytes(), record.machine, KEY), Ok(record));
        }

        #[test]
        fn what_was_changed_is_none(record in record(), at in any::<prop::sample::Index>(), to in any::<u8>()) {
            let good = encode(&record).into_bytes();
            let mut bytes = good.clone();
            let at = at.index(bytes.len());
            bytes[at] = to;
            prop_assert!(bytes == good || decode(&bytes, record.machine, KEY).is_err());
            prop_assert!(decode(&good[..at], record.machine, KEY).is_err());
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(decode(&bytes, MachineId(1), KEY).is_err());
        }
    }

    #[test]
    fn a_value_reads_well_and_another_machines_is_refused() {
        let record = Record {
            machine: MachineId(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef),
            generation: Generation(5),
            runner: Incarnation::new(0x65).expect("not zero"),
            heir: None,
            phase: Phase::Running,
        };
        let text = encode(&record);
        let shown = "romulus-record 1\n\
            machine    01234567-89ab-cdef-0123-456789abcdef\n\
            generation 5\n\
            runner     00000000000000000000000000000065\n\
            heir       none\n\
            phase      running\n\
            check      ";
        assert!(text.starts_with(shown), "{text}");
        let damage = decode(text.as_bytes(), MachineId(1), KEY).expect_err("another's");
        let said = damage.to_string();
        assert!(
            said.contains(KEY) && said.contains("that of 01234567-"),
            "{said}"
        );
        let edited = text.replace("generation 5", "generation 6");
        let damage = decode(edited.as_bytes(), record.machine, KEY).expect_err("edited");
        assert!(damage.to_string().contains("by hand"), "{damage}");
    }
}
