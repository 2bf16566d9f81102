//! Programs run to their end, with a deadline.

use anyhow::{Context as _, Result, bail};
use std::{
    io::Read,
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

/// The program that runs now, also when its file has been replaced by a newer build meanwhile.
pub(crate) const THIS_PROGRAM: &str = "/proc/self/exe";

/// From now on this process is killed when the thread that started it ends, however that happens: a job of a test does not go on
/// where the test was killed.
///
/// # Errors
/// The operating system refuses.
pub(crate) fn end_with_parent() -> Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .context("asking to end with the process that started this one")
}

/// Runs a program and collects what it prints. One that runs longer than `limit` is killed.
///
/// # Errors
/// The program can't be started, or did not end in time.
pub(crate) fn output_within(command: &mut Command, limit: Duration) -> Result<Output> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {name}"))?;
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    let Some(status) = wait_within(&mut child, limit)? else {
        kill(&mut child);
        bail!(
            "{name} did not end within {} s and was killed",
            limit.as_secs()
        );
    };
    // A program left in the background by this one may hold the pipes open: its output is not waited for.
    let rest = |pipe: mpsc::Receiver<Vec<u8>>| {
        pipe.recv_timeout(Duration::from_secs(5))
            .unwrap_or_default()
    };
    Ok(Output {
        status,
        stdout: rest(stdout),
        stderr: rest(stderr),
    })
}

/// Waits for a program's end; `None` if it still runs after `limit`.
///
/// # Errors
/// The operating system refuses to say.
pub(crate) fn wait_within(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Kills a program of ours and takes its exit status away.
pub(crate) fn kill(child: &mut Child) {
    // Both fail only for a program that has ended and been waited for already.
    let _ = child.kill();
    let _ = child.wait();
}

/// Asks `condition` every `every` until it gives a value; `None` after `limit`.
///
/// # Errors
/// Those of `condition`.
pub(crate) fn poll<T>(
    limit: Duration,
    every: Duration,
    mut condition: impl FnMut() -> Result<Option<T>>,
) -> Result<Option<T>> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = condition()? {
            return Ok(Some(value));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        thread::sleep(every);
    }
}

fn collect(pipe: Option<impl Read + Send + 'static>) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What was read before an error is still worth showing.
            let _ = pipe.read_to_end(&mut bytes);
        }
        let _ = sender.send(bytes);
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::output_within;
    use std::{process::Command, time::Duration};

    #[test]
    fn output_and_status_are_kept() {
        let mut command = Command::new("sh");
        let output = output_within(
            command.args(["-c", "echo out; echo err >&2; exit 3"]),
            Duration::from_secs(10),
        )
        .unwrap();
        assert_eq!(output.status.code(), Some(3));
        assert_eq!(
            (output.stdout.as_slice(), output.stderr.as_slice()),
            (&b"out\n"[..], &b"err\n"[..])
        );
    }

    #[test]
    fn a_program_that_does_not_end_is_killed() {
        let error =
            output_within(Command::new("sleep").arg("60"), Duration::from_millis(50)).unwrap_err();
        assert!(error.to_string().contains("was killed"), "{error}");
    }
}
