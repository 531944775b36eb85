//! Holds on running migrations, resume of paused guests, and the hook that libvirt asks.
