//! What the operator types at the terminal of `romulus run`.

use super::{shared::Shared, supervisor::Event};
use crate::{
    api::model::Control as _,
    console::keys::{Input, Keys},
};
use std::{
    io::{self, Read as _},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

/// The serial port has a small buffer, which the guest empties; nobody tells when.
const RETRY: Duration = Duration::from_millis(2);
/// How long a guest may take no input before what was typed is dropped.
const PATIENCE: Duration = Duration::from_secs(2);

const KEYS: &str = "Ctrl-] then
  p  press the guest's power button
  q  stop the machine in order, and by force after its stop_timeout
  x  stop it by force now
  Ctrl-]  send Ctrl-] to the guest";

/// Starts the thread that reads the terminal.
pub(super) fn spawn(shared: Arc<Shared>, events: mpsc::Sender<Event>) -> io::Result<()> {
    thread::Builder::new()
        .name("terminal".into())
        .spawn(move || {
            let mut keys = Keys::default();
            let mut buffer = [0; 1024];
            loop {
                let length = match io::stdin().lock().read(&mut buffer) {
                    // A terminal that is gone sends SIGHUP as well.
                    Ok(0) => return,
                    Ok(length) => length,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => {
                        tracing::warn!("the terminal cannot be read any more: {error}");
                        return;
                    }
                };
                for input in keys.feed(&buffer[..length]) {
                    let event = match input {
                        Input::Bytes(bytes) => {
                            feed(&shared, &bytes);
                            continue;
                        }
                        Input::Command(b'p') => Event::PowerButton,
                        Input::Command(b'q') => Event::Stop,
                        Input::Command(b'x') => Event::Force,
                        Input::Command(_) => {
                            eprintln!("\r\n{KEYS}");
                            continue;
                        }
                    };
                    if events.send(event).is_err() {
                        return;
                    }
                }
            }
        })?;
    Ok(())
}

fn feed(shared: &Shared, mut bytes: &[u8]) {
    let mut deadline = Instant::now() + PATIENCE;
    while !bytes.is_empty() && Instant::now() < deadline {
        let taken = shared.console_input(bytes).min(bytes.len());
        bytes = &bytes[taken..];
        if taken > 0 {
            deadline = Instant::now() + PATIENCE;
        }
        if !bytes.is_empty() {
            thread::sleep(RETRY);
        }
    }
}
