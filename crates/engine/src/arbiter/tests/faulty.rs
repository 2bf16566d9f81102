//! A disk in memory that knows what a power cut would leave, and fails when told to.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;

use rustix::io::Errno;

use super::super::disk::Disk;

/// A change of the names that is not durable yet.
#[derive(Clone, Debug)]
enum Naming {
    Link(String, usize),
    Rename(String, String),
    Remove(String),
}

/// A file's content: as programs see it, and as it is sure to survive.
#[derive(Clone, Debug, Default)]
struct Content {
    now: Vec<u8>,
    synced: Option<Vec<u8>>,
}

/// The disk. Contents are kept apart from names, as on a real one.
#[derive(Clone, Debug, Default)]
pub(super) struct Faulty {
    contents: Vec<Content>,
    names: BTreeMap<String, usize>,
    durable: BTreeMap<String, usize>,
    pending: Vec<Naming>,
    /// Steps done so far.
    pub(super) steps: Cell<usize>,
    /// From this step on nothing happens any more: the computer is off.
    pub(super) off_at: Option<usize>,
    /// These steps fail; the disk goes on.
    pub(super) fail: Vec<usize>,
}

fn apply(names: &mut BTreeMap<String, usize>, naming: &Naming) {
    match naming {
        Naming::Link(name, content) => {
            names.insert(name.clone(), *content);
        }
        Naming::Rename(from, to) => {
            if let Some(content) = names.remove(from) {
                names.insert(to.clone(), content);
            }
        }
        Naming::Remove(name) => {
            names.remove(name);
        }
    }
}

impl Faulty {
    fn step(&self) -> io::Result<()> {
        let step = self.steps.get();
        if self.off_at.is_some_and(|off| step >= off) {
            return Err(Errno::IO.into());
        }
        self.steps.set(step + 1);
        if self.fail.contains(&step) {
            return Err(Errno::NOSPC.into());
        }
        Ok(())
    }

    fn content(&self, name: &str) -> io::Result<usize> {
        let content = self.names.get(name).copied();
        content.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn name(&mut self, naming: Naming) {
        apply(&mut self.names, &naming);
        self.pending.push(naming);
    }

    /// Every disk that a power cut may leave of this one: any number of the newest changes of
    /// names lost; of content that was not synced, nothing, a part, or all there.
    pub(super) fn after_power_cut(&self) -> Vec<Faulty> {
        let mut disks = Vec::new();
        for kept in 0..=self.pending.len() {
            let mut names = self.durable.clone();
            for naming in &self.pending[..kept] {
                apply(&mut names, naming);
            }
            for share in [0, 1, 2] {
                let contents = self.contents.iter().map(|content| {
                    let now = match &content.synced {
                        Some(synced) if *synced == content.now => synced.clone(),
                        _ => content.now[..content.now.len() * share / 2].to_vec(),
                    };
                    Content {
                        synced: Some(now.clone()),
                        now,
                    }
                });
                disks.push(Faulty {
                    contents: contents.collect(),
                    names: names.clone(),
                    durable: names.clone(),
                    ..Faulty::default()
                });
            }
        }
        disks
    }

    /// This disk with the computer on again, without a power cut: a new process.
    pub(super) fn after_crash(&self) -> Faulty {
        Faulty {
            steps: Cell::new(0),
            off_at: None,
            fail: Vec::new(),
            ..self.clone()
        }
    }

    /// Puts a file there, durably.
    pub(super) fn put(&mut self, name: &str, bytes: &[u8]) {
        self.contents.push(Content {
            now: bytes.to_vec(),
            synced: Some(bytes.to_vec()),
        });
        let content = self.contents.len() - 1;
        self.names.insert(name.to_owned(), content);
        self.durable.insert(name.to_owned(), content);
    }

    /// All names.
    pub(super) fn list(&self) -> Vec<String> {
        self.names.keys().cloned().collect()
    }
}

impl Disk for Faulty {
    fn names(&self) -> io::Result<Vec<String>> {
        self.step()?;
        Ok(self.list())
    }

    fn read(&self, name: &str, most: u64) -> io::Result<Vec<u8>> {
        self.step()?;
        let mut bytes = self.contents[self.content(name)?].now.clone();
        bytes.truncate(usize::try_from(most).expect("small") + 1);
        Ok(bytes)
    }

    fn write(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let failed = self.step();
        if failed.is_err() && self.off_at.is_some_and(|off| self.steps.get() >= off) {
            return failed;
        }
        if self.content(name).is_err() {
            self.contents.push(Content::default());
            self.name(Naming::Link(name.to_owned(), self.contents.len() - 1));
        }
        let content = self.content(name)?;
        // A full disk takes a part.
        let length = bytes.len() / if failed.is_err() { 2 } else { 1 };
        self.contents[content].now = bytes[..length].to_vec();
        failed
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        self.step()?;
        let content = self.content(name)?;
        let content = &mut self.contents[content];
        content.synced = Some(content.now.clone());
        Ok(())
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.step()?;
        self.content(from)?;
        self.name(Naming::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.step()?;
        self.content(name)?;
        self.name(Naming::Remove(name.to_owned()));
        Ok(())
    }

    fn sync_names(&mut self) -> io::Result<()> {
        self.step()?;
        for naming in std::mem::take(&mut self.pending) {
            apply(&mut self.durable, &naming);
        }
        Ok(())
    }
}
