//! The machine's own sink: the thread that writes console output to its log or to standard output.

use super::{
    hub::{Hub, Next},
    log::RotatingLog,
};
use std::{
    io::{self, Write as _},
    sync::Arc,
    thread::{self, JoinHandle},
};

/// Where the sink writes.
pub(crate) enum Target {
    /// Standard output.
    Stdout,
    /// A log file.
    File(RotatingLog),
}

impl Target {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::File(log) => log.write(bytes),
            Self::Stdout => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(bytes)?;
                stdout.flush()
            }
        }
    }

    fn reopen(&mut self) -> io::Result<()> {
        match self {
            Self::File(log) => log.reopen(),
            Self::Stdout => Ok(()),
        }
    }
}

/// Starts the thread. It ends after [`Hub::close`], when everything is written.
pub(crate) fn spawn(hub: Arc<Hub>, mut target: Target) -> io::Result<JoinHandle<()>> {
    thread::Builder::new()
        .name("console".into())
        .spawn(move || {
            let mut buffer = Vec::new();
            let mut failing = false;
            loop {
                let result = match hub.next_for_sink(&mut buffer) {
                    Next::End => return,
                    Next::Reopen => target.reopen(),
                    Next::Write { missed: 0 } => target.write(&buffer),
                    Next::Write { missed } => target
                        .write(
                            format!("\r\n[{missed} bytes of console output lost]\r\n").as_bytes(),
                        )
                        .and_then(|()| target.write(&buffer)),
                };
                // The machine matters more than its log: say it once, and go on.
                match &result {
                    Err(error) if !failing => {
                        tracing::error!("console output cannot be written and is lost: {error}");
                    }
                    Ok(()) if failing => tracing::info!("console output can be written again"),
                    _ => {}
                }
                failing = result.is_err();
            }
        })
}
