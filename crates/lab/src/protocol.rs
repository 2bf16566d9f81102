//! The language between the lab and the agent in each host.
//!
//! One TCP connection carries one request. Every frame is a byte that says what it is, the length of its content as four
//! bytes (little endian) and the content, at most [`MAX_CONTENT`] bytes. The lab sends [`Frame::Request`] first; what
//! follows depends on the request:
//!
//! | request | lab → agent | agent → lab |
//! | --- | --- | --- |
//! | `Hello` | | `Welcome` |
//! | `Run` | `Input`*, `InputEnd`, `Resize`* | `Started`, (`Output` \| `Errors`)*, `Exited` |
//! | `Signal` | | `Done` |
//! | `Put` | `Data` up to the promised size | `Done` |
//! | `Get` | | `Data`*, `Done` |
//!
//! `Failed` may come instead of any answer and ends the connection. When the lab closes the connection before `Exited`, the
//! agent kills the process group that it started.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The TCP port of the agent, on the host's control address alone.
pub const PORT: u16 = 2022;

/// The most bytes of content in one frame.
pub const MAX_CONTENT: usize = 256 << 10;

/// What the lab asks of an agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Are you there?
    Hello,
    /// Start a program.
    Run(Program),
    /// Send a signal to the process group of a program that this agent started and that still runs.
    Signal {
        /// The number that `Started` gave.
        pid: i32,
        /// The signal's number.
        signal: i32,
    },
    /// Take a file.
    Put {
        /// Where it goes: an absolute path. Directories are made as needed, and the file is replaced in one step.
        path: String,
        /// Its permissions.
        mode: u32,
        /// How many bytes of `Data` follow.
        size: u64,
    },
    /// Give a file.
    Get {
        /// Where it is.
        path: String,
    },
}

/// A program to be started in a host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// The program and its arguments, passed on as they are: no shell reads them.
    pub arguments: Vec<String>,
    /// The terminal that it gets; without one it has three pipes.
    pub terminal: Option<Terminal>,
}

/// A terminal's looks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terminal {
    /// The value of `TERM`.
    pub kind: String,
    /// Its size.
    pub size: Size,
}

/// A terminal's size in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// What a host says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The host's name.
    pub name: String,
    /// How long the host's kernel runs, in milliseconds.
    pub uptime_ms: u64,
    /// What its clock said, in microseconds since 1970.
    pub clock_us: u64,
    /// Whether `/dev/kvm` is there.
    pub kvm: bool,
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// The first frame of every connection.
    Request(Request),
    /// Bytes for the program's standard input.
    Input(Vec<u8>),
    /// The program's standard input ends here.
    InputEnd,
    /// The terminal has a new size.
    Resize(Size),
    /// The answer to `Hello`.
    Welcome(Welcome),
    /// The program runs as this process, which leads a group of its own.
    Started(i32),
    /// Bytes from the program's standard output, or its terminal.
    Output(Vec<u8>),
    /// Bytes from the program's standard error.
    Errors(Vec<u8>),
    /// The program ended with this status (as `wait(2)` gives it).
    Exited(i32),
    /// Bytes of a file.
    Data(Vec<u8>),
    /// What was asked for is done; for `Get`, with the file's permissions.
    Done(u32),
    /// What was asked for cannot be done, for this reason.
    Failed(String),
}

impl Frame {
    const fn kind(&self) -> u8 {
        match self {
            Self::Request(_) => 1,
            Self::Input(_) => 2,
            Self::InputEnd => 3,
            Self::Resize(_) => 4,
            Self::Welcome(_) => 5,
            Self::Started(_) => 6,
            Self::Output(_) => 7,
            Self::Errors(_) => 8,
            Self::Exited(_) => 9,
            Self::Data(_) => 10,
            Self::Done(_) => 11,
            Self::Failed(_) => 12,
        }
    }

    /// Writes this frame.
    ///
    /// # Errors
    /// Those of `to`, and `InvalidInput` for content over [`MAX_CONTENT`].
    pub fn write(&self, mut to: impl Write) -> io::Result<()> {
        let owned;
        let content: &[u8] = match self {
            Self::Input(bytes) | Self::Output(bytes) | Self::Errors(bytes) | Self::Data(bytes) => {
                bytes
            }
            Self::Failed(text) => text.as_bytes(),
            Self::InputEnd => &[],
            Self::Request(request) => {
                owned = serde_json::to_vec(request)?;
                &owned
            }
            Self::Resize(size) => {
                owned = serde_json::to_vec(size)?;
                &owned
            }
            Self::Welcome(welcome) => {
                owned = serde_json::to_vec(welcome)?;
                &owned
            }
            Self::Started(number) | Self::Exited(number) => {
                owned = number.to_le_bytes().to_vec();
                &owned
            }
            Self::Done(mode) => {
                owned = mode.to_le_bytes().to_vec();
                &owned
            }
        };
        let length = u32::try_from(content.len())
            .ok()
            .filter(|_| content.len() <= MAX_CONTENT)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "too much for one frame"))?;
        let mut bytes = Vec::with_capacity(5 + content.len());
        bytes.push(self.kind());
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(content);
        to.write_all(&bytes)
    }

    /// Reads the next frame; `None` where the other side closed the connection between two frames.
    ///
    /// # Errors
    /// Those of `from`, and `InvalidData` for what is no frame.
    pub fn read(mut from: impl Read) -> io::Result<Option<Self>> {
        let mut header = [0; 5];
        if from.read(&mut header[..1])? == 0 {
            return Ok(None);
        }
        from.read_exact(&mut header[1..])?;
        let length = u32::from_le_bytes([header[1], header[2], header[3], header[4]]) as usize;
        if length > MAX_CONTENT {
            return Err(invalid(format!(
                "a frame of {length} bytes; {MAX_CONTENT} are allowed"
            )));
        }
        let mut content = vec![0; length];
        from.read_exact(&mut content)?;
        Ok(Some(match header[0] {
            1 => Self::Request(json(&content)?),
            2 => Self::Input(content),
            3 => Self::InputEnd,
            4 => Self::Resize(json(&content)?),
            5 => Self::Welcome(json(&content)?),
            6 => Self::Started(i32::from_le_bytes(four(&content)?)),
            7 => Self::Output(content),
            8 => Self::Errors(content),
            9 => Self::Exited(i32::from_le_bytes(four(&content)?)),
            10 => Self::Data(content),
            11 => Self::Done(u32::from_le_bytes(four(&content)?)),
            12 => Self::Failed(String::from_utf8_lossy(&content).into_owned()),
            kind => return Err(invalid(format!("a frame of the unknown kind {kind}"))),
        }))
    }
}

fn json<T: DeserializeOwned>(content: &[u8]) -> io::Result<T> {
    serde_json::from_slice(content)
        .map_err(|error| invalid(format!("a frame's content is not understood: {error}")))
}

fn four(content: &[u8]) -> io::Result<[u8; 4]> {
    content
        .try_into()
        .map_err(|_| invalid(format!("a number of {} bytes; it has four", content.len())))
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Frame> {
        vec![
            Frame::Request(Request::Hello),
            Frame::Request(Request::Run(Program {
                arguments: vec!["sh".into(), "-c".into(), "echo '\"$x\"'\n".into()],
                terminal: Some(Terminal {
                    kind: "xterm".into(),
                    size: Size {
                        rows: 24,
                        columns: 80,
                    },
                }),
            })),
            Frame::Request(Request::Signal { pid: 7, signal: 15 }),
            Frame::Request(Request::Put {
                path: "/a b".into(),
                mode: 0o755,
                size: 1 << 40,
            }),
            Frame::Request(Request::Get { path: "/x".into() }),
            Frame::Input(vec![0, 255]),
            Frame::InputEnd,
            Frame::Resize(Size {
                rows: 1,
                columns: 2,
            }),
            Frame::Welcome(Welcome {
                name: "h1".into(),
                uptime_ms: 5000,
                clock_us: 6_000_000,
                kvm: true,
            }),
            Frame::Started(42),
            Frame::Output(vec![1; MAX_CONTENT]),
            Frame::Errors(Vec::new()),
            Frame::Exited(0x100),
            Frame::Data(vec![3; 10]),
            Frame::Done(0o644),
            Frame::Failed("no".into()),
        ]
    }

    #[test]
    fn every_frame_is_read_as_it_was_written() {
        let mut bytes = Vec::new();
        for frame in all() {
            frame.write(&mut bytes).unwrap();
        }
        let mut from = bytes.as_slice();
        for frame in all() {
            assert_eq!(Frame::read(&mut from).unwrap(), Some(frame));
        }
        assert_eq!(Frame::read(&mut from).unwrap(), None);
    }

    #[test]
    fn a_frame_cut_short_is_an_error_and_no_end() {
        let mut bytes = Vec::new();
        Frame::Data(vec![1; 100]).write(&mut bytes).unwrap();
        for length in 1..bytes.len() {
            assert!(Frame::read(&bytes[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn hostile_bytes_are_refused_without_memory_being_taken() {
        let huge = [10, 255, 255, 255, 255];
        assert_eq!(
            Frame::read(&huge[..]).unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
        let unknown = [99, 0, 0, 0, 0];
        assert_eq!(
            Frame::read(&unknown[..]).unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
        let short_number = [9, 1, 0, 0, 0, 7];
        assert_eq!(
            Frame::read(&short_number[..]).unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
        let no_json = [1, 1, 0, 0, 0, b'{'];
        assert_eq!(
            Frame::read(&no_json[..]).unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
    }

    #[test]
    fn too_much_content_is_refused_by_the_writer() {
        let error = Frame::Data(vec![0; MAX_CONTENT + 1])
            .write(Vec::new())
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
