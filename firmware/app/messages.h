/* messages.h - written by python -m stepwell.link.messages; the table is python/stepwell/link/messages.py. */
#ifndef LINK_MESSAGES_H
#define LINK_MESSAGES_H

#define LINK_PROTOCOL 3u
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
#define LINK_TYPE_ECHO 69u
#define LINK_TYPE_STAT 11u
#define LINK_TYPE_BLOB_STATUS 12u
#define LINK_TYPE_BLOB_BEGIN 13u
#define LINK_TYPE_BLOB_WRITE 14u
#define LINK_TYPE_BLOB_COMMIT 15u
#define LINK_TYPE_LOG 254u
#define LINK_TYPE_ERROR 255u
#define LINK_ERROR_TYPE 1u
#define LINK_ERROR_LENGTH 2u
#define LINK_ERROR_SESSION 3u
#define LINK_ERROR_RANGE 4u
#define LINK_ERROR_ORDER 5u
#define LINK_ERROR_STATE 6u
#define LINK_ERROR_MODEL 7u
#define LINK_ERROR_NO_UPDATE 8u
#define LINK_ERROR_SIZE 9u
#define LINK_ERROR_VERSION 10u
#define LINK_ERROR_SIGNATURE 11u
#define LINK_ERROR_BLOB 12u
#define LINK_ERROR_PACKING 13u
#define LINK_ERROR_ROOM 14u
#define LINK_ERROR_FLASH 15u
#define LINK_ERROR_OLD 16u
#define LINK_ERROR_GAP 17u
#define LINK_INFO_BYTES 40u
#define LINK_UNIT_BYTES 22u
#define LINK_MANIFEST_BYTES 32u
#define LINK_UPDATE_UNIT 32u
#define LINK_NO_SLOT 255u
#define LINK_MOST_IN 121u
#define LINK_MOST_OUT 60u

#endif /* LINK_MESSAGES_H */
