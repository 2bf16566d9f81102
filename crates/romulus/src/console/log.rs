//! A log file that rotates by size.

use crate::config::LogFile;
use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

/// A log file never larger than its limit; older ones are kept as `.1` (newest) to `.N`.
#[derive(Debug)]
pub(crate) struct RotatingLog {
    file: File,
    size: u64,
    path: PathBuf,
    max_size: u64,
    keep: u32,
}

impl RotatingLog {
    /// Opens the log to append to it, with its directory made where that is missing.
    pub(crate) fn open(log: &LogFile) -> io::Result<Self> {
        if let Some(directory) = log.path.parent() {
            fs::create_dir_all(directory)?;
        }
        let (file, size) = append_to(&log.path)?;
        Ok(Self {
            file,
            size,
            path: log.path.clone(),
            max_size: log.max_size.max(1),
            keep: log.keep,
        })
    }

    /// Opens the file of that name anew, for tools that rotate by moving files away.
    pub(crate) fn reopen(&mut self) -> io::Result<()> {
        (self.file, self.size) = append_to(&self.path)?;
        Ok(())
    }

    /// Appends bytes. Files end at a line's end where one fits.
    pub(crate) fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let room =
                usize::try_from(self.max_size.saturating_sub(self.size)).unwrap_or(usize::MAX);
            let fits = if bytes.len() <= room {
                bytes.len()
            } else {
                match bytes[..room].iter().rposition(|byte| *byte == b'\n') {
                    Some(newline) => newline + 1,
                    // A line longer than a whole file has to be cut somewhere.
                    None if self.size == 0 => room,
                    None => 0,
                }
            };
            let (now, later) = bytes.split_at(fits);
            self.file.write_all(now)?;
            self.size += now.len() as u64;
            bytes = later;
            if !bytes.is_empty() {
                self.rotate()?;
            }
        }
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        if self.keep == 0 {
            self.file.set_len(0)?;
            self.size = 0;
            return Ok(());
        }
        for number in (1..self.keep).rev() {
            match fs::rename(self.older(number), self.older(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        fs::rename(&self.path, self.older(1))?;
        self.reopen()
    }

    fn older(&self, number: u32) -> PathBuf {
        let mut name = OsString::from(&self.path);
        name.push(format!(".{number}"));
        PathBuf::from(name)
    }
}

fn append_to(path: &Path) -> io::Result<(File, u64)> {
    // A console may show secrets: nobody else reads it.
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)?;
    let size = file.metadata()?.len();
    Ok((file, size))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn rotates_at_lines_and_keeps_as_many_as_asked() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/console.log");
        let mut log = RotatingLog::open(&LogFile {
            path: path.clone(),
            max_size: 16,
            keep: 2,
        })
        .unwrap();
        for number in 0..8 {
            log.write(format!("line {number}\n").as_bytes()).unwrap();
        }
        assert_eq!(
            names(path.parent().unwrap()),
            ["console.log", "console.log.1", "console.log.2"]
        );
        assert_eq!(fs::read_to_string(&path).unwrap(), "line 6\nline 7\n");
        assert_eq!(
            fs::read_to_string(log.older(1)).unwrap(),
            "line 4\nline 5\n"
        );
        assert_eq!(
            fs::read_to_string(log.older(2)).unwrap(),
            "line 2\nline 3\n"
        );
    }

    #[test]
    fn nothing_is_lost_and_no_file_too_large_when_lines_are_long() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut log = RotatingLog::open(&LogFile {
            path: path.clone(),
            max_size: 10,
            keep: 9,
        })
        .unwrap();
        log.write(b"0123\n").unwrap();
        log.write(b"a line that is far longer than ten bytes\nend\n")
            .unwrap();
        let mut all = String::new();
        for name in names(directory.path()).iter().rev() {
            let text = fs::read_to_string(directory.path().join(name)).unwrap();
            assert!(text.len() <= 10, "{name} is too large");
            all.push_str(&text);
        }
        assert_eq!(all, "0123\na line that is far longer than ten bytes\nend\n");
    }

    #[test]
    fn a_log_that_keeps_none_stays_one_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut log = RotatingLog::open(&LogFile {
            path: path.clone(),
            max_size: 8,
            keep: 0,
        })
        .unwrap();
        log.write(b"one\ntwo\nthree\nfour\n").unwrap();
        assert_eq!(names(directory.path()), ["log"]);
        assert_eq!(fs::read_to_string(&path).unwrap(), "four\n");
    }

    #[test]
    fn appends_to_what_is_there_and_follows_a_move() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        fs::write(&path, "old\n").unwrap();
        let mut log = RotatingLog::open(&LogFile {
            path: path.clone(),
            max_size: 100,
            keep: 1,
        })
        .unwrap();
        log.write(b"new\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "old\nnew\n");
        fs::rename(&path, directory.path().join("moved")).unwrap();
        log.reopen().unwrap();
        log.write(b"after\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "after\n");
    }
}
