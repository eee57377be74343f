/* messages.h - written by python -m stepwell.link.messages; the table is python/stepwell/link/messages.py. */
#ifndef LINK_MESSAGES_H
#define LINK_MESSAGES_H

#define LINK_PROTOCOL 1u
#define LINK_MTU 254u
#define LINK_HEADER_BYTES 2u
#define LINK_CRC_BYTES 4u
#define LINK_REPLY 128u
#define LINK_TYPE_INFO 1u
#define LINK_TYPE_RESET 2u
#define LINK_TYPE_STEP 3u
#define LINK_TYPE_GET_STATE 4u
#define LINK_TYPE_SET_STATE 5u
#define LINK_TYPE_PROBE_INPUT 6u
#define LINK_TYPE_PROBE 7u
#define LINK_TYPE_BENCH 8u
#define LINK_TYPE_MEM 9u
#define LINK_TYPE_ECHO 10u
#define LINK_TYPE_STAT 11u
#define LINK_TYPE_LOG 254u
#define LINK_TYPE_ERROR 255u
#define LINK_ERROR_TYPE 1u
#define LINK_ERROR_LENGTH 2u
#define LINK_ERROR_SESSION 3u
#define LINK_ERROR_RANGE 4u
#define LINK_ERROR_ORDER 5u
#define LINK_ERROR_STATE 6u
#define LINK_ERROR_MODEL 7u
#define LINK_INFO_BYTES 32u
#define LINK_UNIT_BYTES 22u

#endif /* LINK_MESSAGES_H */
