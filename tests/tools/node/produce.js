// node produce.js BOOTSTRAP TOPIC JSON: produces {"codec", "idempotent", "messages": [{"key", "value", "partition"}]}
// and prints one JSON line: [[partition, base offset], ...].
const { Kafka, logLevel } = require('kafkajs')
const codecs = require('./codecs')

const main = async () => {
  const [bootstrap, topic, encoded] = process.argv.slice(2)
  const { codec, idempotent, messages } = JSON.parse(encoded)
  await codecs.register()
  const kafka = new Kafka({ clientId: 'kafkajs-test', brokers: [bootstrap], logLevel: logLevel.NOTHING })
  const producer = kafka.producer({ idempotent, allowAutoTopicCreation: false })
  await producer.connect()
  const sent = await producer.send({ topic, acks: -1, compression: codecs.types[codec], messages })
  await producer.disconnect()
  process.stdout.write(JSON.stringify(sent.map((one) => [one.partition, Number(one.baseOffset), one.errorCode])) + '\n')
}

main().catch((error) => {
  process.stderr.write(`${error.stack}\n`)
  process.exit(1)
})
