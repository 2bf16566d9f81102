//! The serial port COM1, a 16550A.

use super::{Lines, console::Console};
use crate::{
    devices::InterruptLine,
    state::{Reader, StateError, Writer, kind},
};
use std::{
    convert::Infallible,
    io,
    sync::{Mutex, MutexGuard, PoisonError},
};
use vm_superio::{
    Serial, Trigger,
    serial::{NoEvents, SerialState},
};

/// First port.
pub(crate) const PORT: u16 = 0x3f8;
/// Its interrupt.
pub(crate) const GSI: u32 = 4;

const PORTS: u16 = 8;
pub(crate) const VERSION: u16 = 1;
/// Bytes of state before the buffered input.
const REGISTERS: usize = 9;
/// What the receive buffer holds at most.
const BUFFER: usize = 64;

/// Register number of `port`, if it is one of this device.
pub(crate) fn offset(port: u16) -> Option<u8> {
    let offset = port.checked_sub(PORT).filter(|o| *o < PORTS)?;
    u8::try_from(offset).ok()
}

/// Raises the port's interrupt.
struct Line(Lines);

impl Trigger for Line {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.pulse(GSI);
        Ok(())
    }
}

/// What the guest sends goes to the console.
struct Output(Console);

impl io::Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.put(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

type Device = Serial<Line, NoEvents, Output>;

struct Inner {
    device: Device,
    paused: bool,
    /// The interrupt is to be raised at the next resume.
    raise: bool,
}

/// The port.
pub(super) struct SerialPort {
    inner: Mutex<Inner>,
    lines: Lines,
    console: Console,
}

impl SerialPort {
    pub(super) fn new(lines: Lines, console: Console) -> Self {
        Self {
            inner: Mutex::new(Inner {
                device: Device::new(Line(lines.clone()), Output(console.clone())),
                paused: true,
                raise: false,
            }),
            lines,
            console,
        }
    }

    pub(super) fn read(&self, offset: u8, data: &mut [u8]) {
        let mut inner = self.lock();
        for byte in data {
            *byte = inner.device.read(offset);
        }
    }

    pub(super) fn write(&self, offset: u8, data: &[u8]) {
        let mut inner = self.lock();
        for byte in data {
            // Neither the interrupt nor the console can fail; a full receive buffer in loopback mode loses the byte,
            // as the device does.
            let _ = inner.device.write(offset, *byte);
        }
    }

    /// Offers bytes; returns how many were taken.
    pub(super) fn input(&self, bytes: &[u8]) -> usize {
        let mut inner = self.lock();
        if inner.paused || bytes.is_empty() {
            return 0;
        }
        inner.device.enqueue_raw_bytes(bytes).unwrap_or(0)
    }

    pub(super) fn pause(&self) {
        self.lock().paused = true;
    }

    pub(super) fn resume(&self) {
        let mut inner = self.lock();
        inner.paused = false;
        if std::mem::take(&mut inner.raise) {
            self.lines.pulse(GSI);
        }
    }

    pub(super) fn save(&self, writer: &mut Writer<'_>) {
        let state = self.lock().device.state();
        let result = writer.section(kind::SERIAL, 0, VERSION, |p| {
            let registers: [u8; REGISTERS] = [
                state.baud_divisor_low,
                state.baud_divisor_high,
                state.interrupt_enable,
                state.interrupt_identification,
                state.line_control,
                state.line_status,
                state.modem_control,
                state.modem_status,
                state.scratch,
            ];
            p.put(&registers);
            p.put(&u8::try_from(state.in_buffer.len()).expect("at most 64 bytes"));
            p.put(&state.in_buffer[..]);
            Ok::<_, Infallible>(())
        });
        match result {
            Ok(()) => {}
        }
    }

    pub(super) fn restore(&self, reader: &mut Reader<'_>) -> Result<(), StateError> {
        let mut fields = reader.section(kind::SERIAL, 0, VERSION)?;
        let r: [u8; REGISTERS] = fields.get()?;
        let length = fields.get::<u8>()?;
        if usize::from(length) > BUFFER {
            return Err(fields.invalid(format!("{length} bytes in a buffer of {BUFFER}")));
        }
        let state = SerialState {
            baud_divisor_low: r[0],
            baud_divisor_high: r[1],
            interrupt_enable: r[2],
            interrupt_identification: r[3],
            line_control: r[4],
            line_status: r[5],
            modem_control: r[6],
            modem_status: r[7],
            scratch: r[8],
            in_buffer: fields.bytes(length.into())?.to_vec(),
        };
        let name = fields.name();
        fields.finish()?;
        let mut inner = self.lock();
        inner.device = Device::from_state(
            &state,
            Line(self.lines.clone()),
            NoEvents,
            Output(self.console.clone()),
        )
        .map_err(|e| StateError::Value {
            name,
            why: format!("{e:?}"),
        })?;
        // An edge that was on its way is not in this state; one too many does no harm.
        inner.raise = true;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_eight_ports_and_no_others() {
        assert_eq!(offset(0x3f7), None);
        assert_eq!(offset(0x3f8), Some(0));
        assert_eq!(offset(0x3ff), Some(7));
        assert_eq!(offset(0x400), None);
        assert_eq!(offset(0), None);
    }
}
