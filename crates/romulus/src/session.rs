//! `romulus console`: a terminal, or a pipe, attached to a running machine.

use crate::{
    api::client::Client,
    console::{
        keys::{Input, Keys},
        terminal::{self, Raw},
    },
    exit::Failure,
};
use anyhow::Context as _;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use std::{
    io::{self, Read as _, Write as _},
    thread,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::mpsc,
};

/// Pieces of typed input that wait for the machine at most.
const QUEUE: usize = 64;

const KEYS: &str = "Ctrl-] then
  q  leave; the machine runs on
  Ctrl-]  send Ctrl-] to the guest";

/// How a session ended.
#[derive(Debug, PartialEq, Eq)]
enum Left {
    /// The operator left, or the input ended.
    Operator,
    /// The machine ended.
    Machine,
}

/// Attaches until the operator leaves or the machine ends.
pub(crate) fn console(client: &Client, name: &str) -> Result<(), Failure> {
    let interactive = terminal::is_terminal();
    let left = client.attach(|connection| async move {
        let raw = if interactive {
            eprintln!("Console of {name}. Ctrl-] then q leaves.");
            Some(Raw::enter().context("cannot make the terminal raw")?)
        } else {
            None
        };
        let left = carry(connection, interactive).await;
        drop(raw);
        left
    })?;
    if interactive {
        match left {
            Left::Operator => eprintln!("\nLeft the console; {name} runs on."),
            Left::Machine => eprintln!("\nMachine {name} has ended."),
        }
    }
    Ok(())
}

async fn carry(connection: TokioIo<Upgraded>, interactive: bool) -> anyhow::Result<Left> {
    let (mut reader, mut writer) = tokio::io::split(connection);
    let mut typed = read_stdin().context("cannot read standard input")?;
    let input = async {
        let mut keys = Keys::default();
        while let Some(bytes) = typed.recv().await {
            let inputs = if interactive {
                keys.feed(&bytes)
            } else {
                vec![Input::Bytes(bytes)]
            };
            for input in inputs {
                match input {
                    Input::Bytes(bytes) => writer.write_all(&bytes).await?,
                    Input::Command(b'q') => return anyhow::Ok(Left::Operator),
                    Input::Command(_) => eprintln!("\n{KEYS}"),
                }
            }
        }
        // Standard input has ended; what the machine says may still be wanted.
        std::future::pending().await
    };
    let output = async {
        let mut buffer = [0; 4096];
        loop {
            let length = reader.read(&mut buffer).await?;
            if length == 0 {
                return anyhow::Ok(Left::Machine);
            }
            let mut stdout = io::stdout().lock();
            match stdout
                .write_all(&buffer[..length])
                .and_then(|()| stdout.flush())
            {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                    return Ok(Left::Operator);
                }
                result => result.context("cannot write to standard output")?,
            }
        }
    };
    tokio::select! {
        left = input => left.context("the console's connection broke"),
        left = output => left.context("the console's connection broke"),
    }
}

/// Reads standard input in a thread: there is no way to read a terminal without blocking that leaves it as it was.
fn read_stdin() -> io::Result<mpsc::Receiver<Vec<u8>>> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    thread::Builder::new().name("stdin".into()).spawn(move || {
        let mut buffer = [0; 1024];
        loop {
            match io::stdin().lock().read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => return,
                Ok(length) => {
                    if sender.blocking_send(buffer[..length].to_vec()).is_err() {
                        return;
                    }
                }
            }
        }
    })?;
    Ok(receiver)
}
