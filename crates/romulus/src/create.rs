//! `romulus create`: the record of a new protected machine, and the sidecar that lets its first host start it.
//!
//! The record names a *creator*, an incarnation that never lives; the sidecar says that this host's disk was valid under
//! it. A crash between the two must not leave a record that nobody can claim. So the creator is written down before the
//! arbiter is asked, and a second try goes on with the same one.

use crate::{
    cli, commands,
    config::{MachineFile, Protection},
    exit::{Code, Failure, OrExit as _},
    run,
    runtime::RuntimeDir,
};
use anyhow::Context as _;
use romulus_engine::{arbiter::Client, random, sidecar};
use romulus_protocol::{
    arbiter::{Answer, Ask, Request},
    id::{Incarnation, MachineId},
    record::{Record, Refusal},
    sidecar::Sidecar,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;
use std::{
    fs, io,
    path::Path,
    time::{Duration, Instant},
};

/// From one request to the next while the arbiter does not answer.
const RETRY: Duration = Duration::from_millis(250);

/// What `--json` prints.
#[derive(Serialize)]
struct Created {
    machine: String,
    uuid: String,
    /// Whether the record was made now; `false` where it was there.
    #[serde(rename = "created")]
    now: bool,
    generation: u64,
}

/// Makes the record.
pub(crate) fn create(args: &cli::Create) -> Result<Code, Failure> {
    let file = match MachineFile::load(&args.file) {
        Err(error) if error.lacks_only_uuid() => return suggest(args),
        file => file.or_exit(Code::Config)?,
    };
    let (Some(protection), Some(machine)) = (&file.protection, file.uuid) else {
        return Err(anyhow::anyhow!(
            "{}: there is no [protection], so there is nothing to create; `romulus run` runs the machine",
            args.file.display()
        ))
        .or_exit(Code::Config);
    };
    let part = run::part(protection)?;
    let [first, second] = &protection.hosts;
    if part.me != 0 {
        return Err(anyhow::anyhow!(
            "a new machine starts on the first host of its file, {}; create it there, not on {}",
            first.name,
            second.name
        )
        .into());
    }
    let from = protection.hosts[part.me]
        .control
        .map(|control| control.ip());
    let client = Client::open(
        protection.arbiter,
        from,
        &part.secret,
        &protection.arbiter_identity,
    )
    .or_exit(Code::Unavailable)?;
    let mut court = Court {
        client,
        deadline: Instant::now() + args.timeout.min(Duration::from_hours(24)),
        machine,
        number: 0,
    };
    let name = &file.machine.name;
    let outcome = settle(name, machine, protection, &mut |from, ask| {
        court.ask(from, &ask)
    })?;
    let (record, created) = match outcome {
        Outcome::Created(record) => (record, true),
        Outcome::Existed(record) => (record, false),
    };
    if args.json {
        commands::print_json(&Created {
            machine: name.clone(),
            uuid: machine.to_string(),
            now: created,
            generation: record.generation.0,
        })?;
    } else if created {
        println!(
            "machine {name} ({machine}) is created; run it on both hosts, {} first:\n  romulus run {}",
            first.name,
            args.file.display()
        );
    } else {
        println!(
            "machine {name} ({machine}) exists already, and this host may run it; nothing was changed"
        );
    }
    Ok(Code::Done)
}

/// A file without a uuid gets one to paste.
fn suggest(args: &cli::Create) -> Result<Code, Failure> {
    // Version 4 and the variant of RFC 9562.
    let uuid =
        MachineId(random::number()? & !(0xf << 76) & !(0b11 << 62) | (0x4 << 76) | (0b10 << 62));
    if args.json {
        commands::print_json(&serde_json::json!({ "uuid": uuid.to_string() }))?;
    }
    Err(anyhow::anyhow!(
        "{}: the machine has no uuid yet; write this line above the first section, in the file of both hosts, and create it again:\n\nuuid = \"{uuid}\"\n",
        args.file.display()
    ))
    .or_exit(Code::Config)
}

/// What has come of it.
enum Outcome {
    Created(Record),
    Existed(Record),
}

/// Brings the record and this host's sidecar together, or says why they do not belong together.
fn settle(
    name: &str,
    machine: MachineId,
    protection: &Protection,
    ask: &mut dyn FnMut(Incarnation, Ask) -> Result<Answer, Failure>,
) -> Result<Outcome, Failure> {
    let state = &protection.state;
    let known = sidecar::load(state, machine).or_exit(Code::NoInput)?;
    if !known.valid.is_empty() {
        return existing(&known, protection, ask(random::incarnation()?, Ask::Read)?);
    }
    // A process that runs would not see the new sidecar.
    let _lock = RuntimeDir::of_user()?.lock(name)?;
    let intention = state.join("creating");
    let intended = sidecar::load(&intention, machine).or_exit(Code::NoInput)?;
    let creator = if let Some(creator) = intended.valid.first() {
        *creator
    } else {
        let creator = random::incarnation()?;
        sidecar::store(&intention, &Sidecar::of(machine, creator)).or_exit(Code::CannotCreate)?;
        creator
    };
    let answer = ask(creator, Ask::Create)?;
    let record = match (answer.refusal, answer.record) {
        (None, Some(record)) => record,
        // An answer got lost: the record is ours.
        (Some(Refusal::Exists), Some(record)) if record.runner == creator => record,
        (Some(Refusal::Exists), record) => {
            forget(&intention)?;
            let generation = record.map_or(0, |record| record.generation.0);
            return Err(anyhow::anyhow!(
                "the arbiter has a record of machine {machine} already (generation {generation}), and this host holds nothing of it. If the machine lives on the other host, `romulus run` makes this one its backup; if another machine has this uuid, take a new one"
            )
            .into());
        }
        (Some(refusal), _) => {
            return Err(anyhow::anyhow!("the arbiter refuses: {refusal}").into());
        }
        (None, None) => {
            return Err(anyhow::anyhow!(
                "the arbiter's answer holds no record; are its and this host's releases the same?"
            )
            .into());
        }
    };
    sidecar::store(state, &Sidecar::of(machine, creator)).or_exit(Code::CannotCreate)?;
    forget(&intention)?;
    Ok(Outcome::Created(record))
}

/// This host has held the machine before.
fn existing(known: &Sidecar, protection: &Protection, answer: Answer) -> Result<Outcome, Failure> {
    let state = protection.state.display();
    match answer.record {
        Some(record) if known.matches(&record) => Ok(Outcome::Existed(record)),
        Some(record) => Err(anyhow::anyhow!(
            "the machine exists (generation {}), but what this host holds of it is not the newest: the other host has that. There is nothing to create; `romulus run` makes this host its backup",
            record.generation
        )
        .into()),
        None => Err(anyhow::anyhow!(
            "this host has run the machine before ({state}), but the arbiter has no record of it: it has lost its store, or it is another arbiter. Bring its store back. If this host surely holds the newest state, remove {state} and create the machine anew"
        )
        .into()),
    }
}

fn forget(intention: &Path) -> Result<(), Failure> {
    match fs::remove_dir_all(intention) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error)
            .with_context(|| format!("cannot remove {}", intention.display()))
            .or_exit(Code::CannotCreate),
        _ => Ok(()),
    }
}

/// The arbiter, asked again and again until it answers or the time is over.
struct Court {
    client: Client,
    deadline: Instant,
    machine: MachineId,
    number: u64,
}

impl Court {
    fn ask(&mut self, from: Incarnation, ask: &Ask) -> Result<Answer, Failure> {
        let first = self.number + 1;
        let mut refused = None;
        loop {
            self.number += 1;
            self.client.send(&Request {
                machine: self.machine,
                from,
                number: self.number,
                ask: ask.clone(),
            });
            let again = Instant::now() + RETRY;
            while let Some(answer) = self.wait(again)? {
                if answer.to != from || !(first..=self.number).contains(&answer.number) {
                    continue;
                }
                match answer.refusal {
                    // It is an answer to nothing.
                    Some(refusal @ Refusal::Damaged) => {
                        return Err(anyhow::anyhow!("the arbiter refuses: {refusal}").into());
                    }
                    // These may pass.
                    Some(refusal @ (Refusal::NotStored | Refusal::Busy)) => refused = Some(refusal),
                    _ => return Ok(answer),
                }
            }
            if Instant::now() >= self.deadline {
                return Err(match refused {
                    Some(refusal) => anyhow::anyhow!("the arbiter refuses: {refusal}"),
                    None => anyhow::anyhow!(
                        "the arbiter does not answer; check that it runs, that `arbiter` and `arbiter_identity` are right, that its --allow file has this host's identity, and that no firewall drops UDP between the two"
                    ),
                })
                .or_exit(Code::Unavailable);
            }
        }
    }

    /// The next answer; `None` when none has come until then.
    fn wait(&mut self, until: Instant) -> Result<Option<Answer>, Failure> {
        loop {
            if let Some(answer) = self.client.receive() {
                return Ok(Some(answer));
            }
            let left = until
                .min(self.deadline)
                .saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let fd = self.client.fd();
            let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
            let timeout = Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(left.subsec_nanos()),
            };
            match poll(&mut fds, Some(&timeout)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    return Err(error)
                        .context("cannot wait for the arbiter")
                        .or_exit(Code::Failed);
                }
            }
        }
    }
}
