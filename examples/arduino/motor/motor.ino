/* motor.ino - steps a model ten times a second on whatever the analogue pins read, and prints what comes out.
 *
 * src/motor/ is written by: stepwell emit motor.stw -o motor/src/motor --name motor */
#include "src/motor/motor.h"

static STW_ALIGN4 uint8_t ram[MOTOR_RAM_BYTES];
static stw_stream         stream;
static int                status;

/* 10 bits of the converter become codes; motor_x_code() makes codes of real numbers, in floating point. */
static void read_sensors(int16_t x[MOTOR_N_IN])
{
    for (int j = 0; j < MOTOR_N_IN; j++) {
        x[j] = analogRead(A0 + j % 6) << 5;
    }
}

void setup()
{
    Serial.begin(115200);
    status = stw_init(&stream, &motor, ram, sizeof ram);
}

void loop()
{
    static int32_t y[MOTOR_N_OUT];
    int16_t        x[MOTOR_N_IN];
    uint32_t       start;

    if (status < STW_OK) {
        Serial.println(stw_strerror(status));
        delay(1000);
        return;
    }
    read_sensors(x);
    start  = micros();
    status = stw_step(&stream, x, y);
    start  = micros() - start;
    for (int k = 0; k < MOTOR_N_OUT; k++) {
        Serial.print(y[k]); /* the real value is y[k] / 2^MOTOR_Y_FRAC */
        Serial.print(' ');
    }
    Serial.print(start);
    Serial.println(" us");
    delay(100);
}
