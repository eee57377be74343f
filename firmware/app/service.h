/* service.h - answers the messages of the link (see python/stepwell/link/messages.py) for the model app_model. */
#ifndef SERVICE_H
#define SERVICE_H

#include <stdint.h>

void service_init(void);
void service_byte(uint8_t byte); /* one received byte; answers through board_putc when it completes a request */

#endif /* SERVICE_H */
