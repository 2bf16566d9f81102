//! Power management: the registers by which a guest switches itself off, resets, or says that it panicked, and the
//! power button.

use super::Lines;
use crate::{
    devices::InterruptLine,
    exit::Exit,
    state::{Reader, StateError, Writer, kind},
};
use std::sync::{Mutex, PoisonError};

/// Port of the sleep control register (ACPI 6.5, section 4.8.3.7).
pub(crate) const SLEEP_CONTROL: u16 = 0x600;
/// Port of the sleep status register.
pub(crate) const SLEEP_STATUS: u16 = 0x601;
/// Port of the reset register.
pub(crate) const RESET: u16 = 0x602;
/// What is written there to reset.
pub(crate) const RESET_VALUE: u8 = 1;
/// Sleep type that means "off".
pub(crate) const SLEEP_TYPE_OFF: u8 = 5;
/// Port of the pvpanic device (the kernel's `include/uapi/misc/pvpanic.h`).
pub(crate) const PANIC: u16 = 0x505;
/// Interrupt of the power button's event device.
pub(crate) const BUTTON_GSI: u32 = 3;

/// The keyboard controller's command port, of which only the reset line exists.
const I8042_COMMAND: u16 = 0x64;
/// Pulses the processors' reset line.
const I8042_RESET: u8 = 0xfe;
/// Sleep enable in the sleep control register; bits 2–4 are the type.
const SLEEP_ENABLE: u8 = 1 << 5;
/// Wake status: the guest polls it after it asked to sleep.
const WAKE_STATUS: u8 = 1 << 7;
/// pvpanic: the guest panicked and will not go on.
const PANICKED: u8 = 1 << 0;
pub(crate) const VERSION: u16 = 1;

/// A vCPU writes one of these ports (or any that nobody claims). What is returned stops the machine.
pub(crate) fn write(port: u16, data: &[u8]) -> Option<Exit> {
    let value = *data.first()?;
    match port {
        SLEEP_CONTROL if value & SLEEP_ENABLE != 0 && value >> 2 & 7 == SLEEP_TYPE_OFF => {
            Some(Exit::PoweredOff)
        }
        RESET if value == RESET_VALUE => Some(Exit::Reset),
        I8042_COMMAND if value == I8042_RESET => Some(Exit::Reset),
        PANIC if value & PANICKED != 0 => Some(Exit::Panicked),
        _ => None,
    }
}

/// A vCPU reads one of these ports (or any that nobody claims, which gives ones).
pub(crate) fn read(port: u16, data: &mut [u8]) {
    data.fill(0xff);
    if let Some(first) = data.first_mut() {
        match port {
            SLEEP_STATUS => *first = WAKE_STATUS,
            // The events that are understood.
            PANIC => *first = PANICKED,
            // Of the keyboard controller, zero is "input buffer empty": the guest may write its command at once.
            SLEEP_CONTROL | RESET | I8042_COMMAND => *first = 0,
            _ => {}
        }
    }
}

/// The power button.
pub(super) struct Power {
    lines: Lines,
    state: Mutex<Button>,
}

#[derive(Debug, Default)]
struct Button {
    paused: bool,
    /// Pressed while paused: to be told at resume.
    pending: bool,
}

impl Power {
    pub(super) fn new(lines: Lines) -> Self {
        let state = Mutex::new(Button {
            paused: true,
            pending: false,
        });
        Self { lines, state }
    }

    pub(super) fn press(&self) {
        let mut button = self.lock();
        if button.paused {
            button.pending = true;
        } else {
            self.lines.pulse(BUTTON_GSI);
        }
    }

    pub(super) fn pause(&self) {
        self.lock().paused = true;
    }

    pub(super) fn resume(&self) {
        let mut button = self.lock();
        button.paused = false;
        if std::mem::take(&mut button.pending) {
            self.lines.pulse(BUTTON_GSI);
        }
    }

    pub(super) fn save(&self, writer: &mut Writer<'_>) {
        let pending = self.lock().pending;
        let result = writer.section(kind::POWER, 0, VERSION, |p| {
            p.put(&u8::from(pending));
            Ok::<_, std::convert::Infallible>(())
        });
        match result {
            Ok(()) => {}
        }
    }

    pub(super) fn restore(&self, reader: &mut Reader<'_>) -> Result<(), StateError> {
        let mut fields = reader.section(kind::POWER, 0, VERSION)?;
        let pending = match fields.get::<u8>()? {
            0 => false,
            1 => true,
            other => {
                return Err(fields.invalid(format!("a power button that is pressed {other} times")));
            }
        };
        fields.finish()?;
        self.lock().pending = pending;
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Button> {
        // A panic elsewhere cannot leave two booleans half-changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_documented_writes_stop_the_machine() {
        assert_eq!(
            write(SLEEP_CONTROL, &[5 << 2 | 1 << 5]),
            Some(Exit::PoweredOff)
        );
        assert_eq!(write(SLEEP_CONTROL, &[5 << 2]), None, "not enabled");
        assert_eq!(
            write(SLEEP_CONTROL, &[3 << 2 | 1 << 5]),
            None,
            "another sleep type"
        );
        assert_eq!(write(RESET, &[1]), Some(Exit::Reset));
        assert_eq!(write(RESET, &[0]), None);
        assert_eq!(write(0x64, &[0xfe]), Some(Exit::Reset));
        assert_eq!(write(0x64, &[0xd1]), None);
        assert_eq!(write(PANIC, &[1]), Some(Exit::Panicked));
        assert_eq!(write(PANIC, &[2]), None, "a crash kernel goes on");
        assert_eq!(write(0x80, &[0xfe]), None);
        assert_eq!(write(RESET, &[]), None);
    }

    #[test]
    fn unclaimed_ports_read_as_ones() {
        let mut data = [0; 4];
        read(0x1234, &mut data);
        assert_eq!(data, [0xff; 4]);
        read(SLEEP_STATUS, &mut data[..1]);
        assert_eq!(data[0], 0x80);
        read(PANIC, &mut data[..1]);
        assert_eq!(data[0], 1);
    }
}
