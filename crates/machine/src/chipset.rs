//! What stands around the processors: interrupt controllers and timer (in the kernel), serial port, power registers.

pub(crate) mod console;
pub(crate) mod power;
pub(crate) mod serial;

use crate::{
    Error,
    devices::InterruptLine,
    error::kvm,
    exit::Exit,
    ioctl,
    state::{Reader, Writer, kind},
};
use console::Console;
use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_PIT_SPEAKER_DUMMY,
    kvm_clock_data, kvm_irqchip, kvm_pit_config, kvm_pit_state2,
};
use kvm_ioctls::VmFd;
use power::Power;
use serial::SerialPort;
use std::{io::Write, os::fd::AsRawFd, sync::Arc, time::Duration};

/// Version of the chipset's and the clock's sections.
pub(crate) const VERSION: u16 = 1;
/// The interrupt controllers, in the order of their state.
const CONTROLLERS: [u32; 3] = [
    KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE,
    KVM_IRQCHIP_IOAPIC,
];

/// Raises interrupts through `KVM_IRQ_LINE`.
#[derive(Debug, Clone)]
pub(crate) struct Lines {
    vm: Arc<VmFd>,
}

impl InterruptLine for Lines {
    fn pulse(&self, gsi: u32) {
        // Two calls an edge is the least: an irqfd would be one, but reaches an I/O APIC pin through a work queue, so
        // that the edge could fall outside of the saved state.
        let vm = self.vm.as_raw_fd();
        if let Err(error) =
            ioctl::irq_line(vm, gsi, true).and_then(|()| ioctl::irq_line(vm, gsi, false))
        {
            tracing::error!(gsi, %error, "KVM refused an interrupt");
        }
    }
}

/// The chipset of one machine.
pub(crate) struct Chipset {
    vm: Arc<VmFd>,
    lines: Lines,
    serial: SerialPort,
    power: Power,
}

impl Chipset {
    /// Makes the in-kernel interrupt controllers and timer. To be called before any vCPU is made.
    pub(crate) fn new(vm: Arc<VmFd>, output: Box<dyn Write + Send>) -> Result<Self, Error> {
        vm.create_irq_chip().map_err(kvm("KVM_CREATE_IRQCHIP"))?;
        let pit = kvm_pit_config {
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..Default::default()
        };
        vm.create_pit2(pit).map_err(kvm("KVM_CREATE_PIT2"))?;
        let lines = Lines {
            vm: Arc::clone(&vm),
        };
        Ok(Self {
            serial: SerialPort::new(lines.clone(), Console::start(output)?),
            power: Power::new(lines.clone()),
            vm,
            lines,
        })
    }

    /// Where devices raise their interrupts.
    pub(crate) fn lines(&self) -> Arc<dyn InterruptLine> {
        Arc::new(self.lines.clone())
    }

    /// A vCPU reads a port. Unclaimed ports read as ones.
    pub(crate) fn port_read(&self, port: u16, data: &mut [u8]) {
        match serial::offset(port) {
            Some(offset) => self.serial.read(offset, data),
            None => power::read(port, data),
        }
    }

    /// A vCPU writes a port. Unclaimed ports ignore it. What is returned stops the machine.
    pub(crate) fn port_write(&self, port: u16, data: &[u8]) -> Option<Exit> {
        match serial::offset(port) {
            Some(offset) => {
                self.serial.write(offset, data);
                None
            }
            None => power::write(port, data),
        }
    }

    /// Offers bytes to the serial port; returns how many it took. While paused it takes none.
    pub(crate) fn console_input(&self, bytes: &[u8]) -> usize {
        self.serial.input(bytes)
    }

    /// Presses the power button; while paused, the press comes through at resume.
    pub(crate) fn press_power_button(&self) {
        self.power.press();
    }

    /// From now on until [`Self::resume`], nothing from outside changes the chipset or raises an interrupt.
    pub(crate) fn pause(&self) {
        self.serial.pause();
        self.power.pause();
    }

    /// Lets input in again.
    pub(crate) fn resume(&self) {
        self.serial.resume();
        self.power.resume();
    }

    /// Writes the chipset's sections. Only while paused.
    pub(crate) fn save(&self, writer: &mut Writer<'_>) -> Result<(), Error> {
        writer.section(kind::CHIPSET, 0, VERSION, |p| {
            for chip_id in CONTROLLERS {
                let mut chip = kvm_irqchip {
                    chip_id,
                    ..Default::default()
                };
                self.vm
                    .get_irqchip(&mut chip)
                    .map_err(kvm("KVM_GET_IRQCHIP"))?;
                p.put(&chip);
            }
            p.put(&self.vm.get_pit2().map_err(kvm("KVM_GET_PIT2"))?);
            Ok::<_, Error>(())
        })?;
        writer.section(kind::CLOCK, 0, VERSION, |p| {
            p.put(&self.clock()?);
            Ok::<_, Error>(())
        })?;
        self.serial.save(writer);
        self.power.save(writer);
        Ok(())
    }

    /// Takes the chipset's sections. Only while paused, after the vCPUs have theirs.
    pub(crate) fn restore(&self, reader: &mut Reader<'_>) -> Result<(), Error> {
        let mut fields = reader.section(kind::CHIPSET, 0, VERSION)?;
        for expected in CONTROLLERS {
            let chip: kvm_irqchip = fields.get()?;
            if chip.chip_id != expected {
                return Err(fields
                    .invalid(format!("interrupt controller {}", chip.chip_id))
                    .into());
            }
            self.vm.set_irqchip(&chip).map_err(kvm("KVM_SET_IRQCHIP"))?;
        }
        let pit: kvm_pit_state2 = fields.get()?;
        fields.finish()?;
        self.vm.set_pit2(&pit).map_err(kvm("KVM_SET_PIT2"))?;

        let mut fields = reader.section(kind::CLOCK, 0, VERSION)?;
        let nanoseconds = fields.get()?;
        fields.finish()?;
        self.set_clock(nanoseconds)?;
        self.serial.restore(reader)?;
        self.power.restore(reader)?;
        Ok(())
    }

    /// Lets the guest's clock jump forward by `time`.
    pub(crate) fn advance_clock(&self, time: Duration) -> Result<(), Error> {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.set_clock(self.clock()?.saturating_add(nanoseconds))
    }

    /// The guest's clock: nanoseconds, whose zero is of no meaning to the host.
    fn clock(&self) -> Result<u64, Error> {
        Ok(self.vm.get_clock().map_err(kvm("KVM_GET_CLOCK"))?.clock)
    }

    /// Without flags: the value alone, unrelated to either host's real time.
    fn set_clock(&self, clock: u64) -> Result<(), Error> {
        let data = kvm_clock_data {
            clock,
            ..Default::default()
        };
        self.vm.set_clock(&data).map_err(kvm("KVM_SET_CLOCK"))
    }
}
