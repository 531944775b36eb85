/*
 * Turns the kernel's DRBD interface description into plain enums that bindgen can read.
 *
 * The kernel describes its generic-netlink interface with macros and expands them several times.
 * We give those macros our own meaning: every pass below keeps one kind of number and drops the rest.
 * Nothing of the kernel's text is copied here; the two headers are named on the command line:
 *   -DNASD_DRBD_H='"…/linux/drbd.h"' -DNASD_DRBD_GENL_H='"…/linux/drbd_genl.h"' [-DNASD_DRBD_9]
 * They are named by absolute path because a kernel include directory on the search path would
 * replace the C library's headers.
 */
#include NASD_DRBD_H

/* DRBD 9 passes one argument more to an operation (what its prepare step needs). */
#ifdef NASD_DRBD_9
#define NASD_OP_ARGS(name, number, handler, prepare, tags) name = number,
#define NASD_OP_NONE(name, number, handler, prepare, tags)
#else
#define NASD_OP_ARGS(name, number, handler, tags) name = number,
#define NASD_OP_NONE(name, number, handler, tags)
#endif

/* Field macros: the same in every pass; they matter only where a struct's fields are kept. */
#define NASD_FIELD(number, name) T_##name = number,
#define __flg_field(number, flags, name) NASD_FIELD(number, name)
#define __u8_field(number, flags, name) NASD_FIELD(number, name)
#define __u16_field(number, flags, name) NASD_FIELD(number, name)
#define __u32_field(number, flags, name) NASD_FIELD(number, name)
#define __s32_field(number, flags, name) NASD_FIELD(number, name)
#define __u64_field(number, flags, name) NASD_FIELD(number, name)
#define __str_field(number, flags, name, length) NASD_FIELD(number, name)
#define __bin_field(number, flags, name, length) NASD_FIELD(number, name)
#define __flg_field_def(number, flags, name, value) NASD_FIELD(number, name)
#define __u32_field_def(number, flags, name, value) NASD_FIELD(number, name)
#define __s32_field_def(number, flags, name, value) NASD_FIELD(number, name)
#define __str_field_def(number, flags, name, length) NASD_FIELD(number, name)

/* Pass 1: commands and events, which share one number space. */
#define GENL_struct(tag, number, name, fields)
#define GENL_mc_group(name)
#define GENL_notification(name, number, group, tags) name = number,
#define GENL_op NASD_OP_ARGS
enum nasd_command {
#include NASD_DRBD_GENL_H
};
#undef GENL_notification
#undef GENL_op
#undef GENL_struct

/* Pass 2: top-level tags. */
#define GENL_notification(name, number, group, tags)
#define GENL_op NASD_OP_NONE
#define GENL_struct(tag, number, name, fields) tag = number,
enum nasd_tag {
#include NASD_DRBD_GENL_H
};
#undef GENL_struct

/* Pass 3: the field numbers of every nest (field names are unique across nests). */
#define GENL_struct(tag, number, name, fields) enum nasd_fields_##name { fields };
#include NASD_DRBD_GENL_H
