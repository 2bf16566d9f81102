//! A transport's part of the saved state.

use super::mmio::{Mmio, Selectors};
use crate::state::{Fields, Payload, Reader, StateError, Writer, kind};
use std::convert::Infallible;
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_NEEDS_RESET,
};
use virtio_queue::{Queue, QueueState, QueueT};

/// Version of the sections of transports and of devices.
pub(crate) const VERSION: u16 = 1;

impl Mmio {
    /// Writes two sections: the transport's and the device's, both with the slot's number.
    pub(crate) fn save(&self, index: u16, writer: &mut Writer<'_>) {
        let selectors = *self.selectors();
        let control = self.function.lock();
        let Ok(()) = writer.section::<Infallible>(kind::TRANSPORT, index, VERSION, |payload| {
            for word in [
                control.device.id(),
                control.status,
                self.pending(),
                control.generation,
                selectors.device_features,
                selectors.driver_features,
                selectors.queue,
            ] {
                payload.put(&word);
            }
            payload.put(&control.features());
            payload.put(&control.driver_features);
            payload.put(&(control.queues.len() as u16));
            for (number, queue) in control.queues.iter().enumerate() {
                put_queue(payload, queue.state(), control.device.taken(number));
            }
            Ok(())
        });
        let Ok(()) =
            writer.section::<Infallible>(control.device.kind(), index, VERSION, |payload| {
                control.device.save(payload);
                Ok(())
            });
    }

    /// Takes what [`Self::save`] wrote.
    ///
    /// # Errors
    /// State that is damaged, or of a device that differs from this one; the text says in what.
    pub(crate) fn restore(&self, index: u16, reader: &mut Reader<'_>) -> Result<(), StateError> {
        let mut here = self.selectors();
        let mut control = self.function.lock();
        let mut fields = reader.section(kind::TRANSPORT, index, VERSION)?;
        let id: u32 = fields.get()?;
        if id != control.device.id() {
            return Err(fields.invalid(format!(
                "it is of a device of type {id}, here is type {}",
                control.device.id()
            )));
        }
        let status: u32 = fields.get()?;
        let pending: u32 = fields.get()?;
        let generation: u32 = fields.get()?;
        let selectors = Selectors {
            device_features: fields.get()?,
            driver_features: fields.get()?,
            queue: fields.get()?,
        };
        let offered: u64 = fields.get()?;
        let accepted: u64 = fields.get()?;
        let missing = (offered | accepted) & !control.features();
        if missing != 0 {
            return Err(fields.invalid(format!(
                "the device offered features that this one lacks: {missing:#x}"
            )));
        }
        let count: u16 = fields.get()?;
        if usize::from(count) != control.queues.len() {
            let here = control.queues.len();
            return Err(fields.invalid(format!("it has {count} queues, this device has {here}")));
        }
        let queues = (0..usize::from(count))
            .map(|number| get_queue(&mut fields, &control.queues[number], &control.memory))
            .collect::<Result<Vec<_>, _>>()?;
        if status & !0xcf != 0 || pending & !3 != 0 {
            return Err(fields.invalid(format!("status {status:#x}, pending {pending:#x}")));
        }
        let live = status & VIRTIO_CONFIG_S_DRIVER_OK != 0
            && status & (VIRTIO_CONFIG_S_FAILED | VIRTIO_CONFIG_S_NEEDS_RESET) == 0;
        if live && !control.device.accepts(accepted) {
            return Err(fields.invalid(format!("features {accepted:#x} do not fit together")));
        }
        let refusal = fields.name();
        fields.finish()?;

        control.device.reset();
        control.queues = queues;
        control.status = status;
        control.driver_features = accepted;
        control.generation = generation;
        if live {
            control
                .device
                .activate(accepted)
                .map_err(|fault| StateError::Value {
                    name: refusal,
                    why: fault.0,
                })?;
        }
        let mut fields = reader.section(control.device.kind(), index, VERSION)?;
        control.device.restore(&mut fields)?;
        fields.finish()?;

        *here = selectors;
        self.set_pending(pending);
        self.refresh(selectors, &control);
        Ok(())
    }
}

/// Writes a queue, moved back by the chains that its device has not handed back: they are taken again after a restore.
fn put_queue(payload: &mut Payload<'_>, queue: QueueState, taken: u16) {
    payload.put(&queue.max_size);
    payload.put(&queue.size);
    payload.put(&queue.next_avail.wrapping_sub(taken));
    payload.put(&queue.next_used);
    payload.put(&u16::from(queue.ready));
    payload.put(&u16::from(queue.event_idx_enabled));
    payload.put(&queue.desc_table);
    payload.put(&queue.avail_ring);
    payload.put(&queue.used_ring);
}

/// Reads a queue that must fit `here`.
fn get_queue(
    fields: &mut Fields<'_>,
    here: &Queue,
    memory: &crate::memory::Ram,
) -> Result<Queue, StateError> {
    let state = QueueState {
        max_size: fields.get()?,
        size: fields.get()?,
        next_avail: fields.get()?,
        next_used: fields.get()?,
        ready: fields.get::<u16>()? == 1,
        event_idx_enabled: fields.get::<u16>()? == 1,
        desc_table: fields.get()?,
        avail_ring: fields.get()?,
        used_ring: fields.get()?,
    };
    if state.max_size != here.max_size() {
        let (there, here) = (state.max_size, here.max_size());
        return Err(fields.invalid(format!("a queue had {there} entries at most, here {here}")));
    }
    let queue = Queue::try_from(state).map_err(|error| fields.invalid(error.to_string()))?;
    if queue.ready() && !super::usable(&queue, memory) {
        return Err(fields.invalid("a queue lies outside of memory"));
    }
    Ok(queue)
}
